"""Gates over time: when to keep watching, when to prepare, when to intervene (Tables 6, 11, 13 and 14).

One bad gate revokes claims, but may be a fluctuation; a rebound of overlap that leaves occupancy as it was is
too cheap to trust; two later gates that are worse with the same occupancy pathology are drift. `escalate`
reads a run's gates in order and says, at each, where the rule stands. It is a pure function of the records:
no clock, no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from moe_atlas.errors import Exit
from moe_atlas.verdict import playbook
from moe_atlas.verdict.perplexity import decline_per_100_steps, decline_trend

GREEN, YELLOW, RED = "GREEN", "YELLOW", "RED"

EMPTY = "empty"
WAITING = "waiting"
CLEAR = "clear"
UNDETERMINED = "undetermined"
FIRST_BAD = "first-bad"
ALERT = "alert"
PREPARE = "prepare"
INTERVENE = "intervene"
RECOVERING = "recovering"

WORSE_GATES = 2
"""Later worse gates with the same occupancy pathology that make a pattern persistent (Table 13)."""
BAD_GATES = 4
"""Bad gates of one episode that are persistent whatever the pattern (Table 6: the fourth gate ends the waiting)."""
CLEARING_PASSES = 2
"""Passes in a row that end an episode (Table 14: repeated gates before recovery is declared)."""


@dataclass(frozen=True)
class GateRecord:
    """What one receipt says about the run at one point; None where it does not say.

    Attributes:
        kind: ``baseline``, ``resume`` (a baseline after an interruption) or ``audit``.
        step: training step.
        verdict: ``pass``, ``fail`` or ``inconclusive``; None for a baseline.
        overlap: co-active overlap C2 of the checkpoint, mean over protected layers.
        set_margin: State1, mean over protected layers.
        dead_experts: mean over protected layers.
        load_cv: mean over protected layers, a ratio.
        min_entropy: least load entropy of the protected layers, nats.
        nll: of the task domains, or of the base domains where there is no task; nats per token.
        objective_improved: whether the receipt licenses that the objective improved against its base.
        overlap_worse: whether it licenses that overlap is worse than its base's.
        pathology: which occupancy measures it licenses as degraded: ``dead_share``, ``entropy``, ``load_cv``.
        occupancy_healthy: whether it licenses that none of them is; False where `pathology` is not empty.
        margin_worse: whether it licenses that set margins fell in every protected layer.
        failed: the gates that failed.
        clean: for a baseline: whether overlap and occupancy stand where the run's first reference had them.
        policy: digest of the policy that judged it.
    """

    kind: str
    step: int | None = None
    verdict: str | None = None
    overlap: float | None = None
    set_margin: float | None = None
    dead_experts: float | None = None
    load_cv: float | None = None
    min_entropy: float | None = None
    nll: float | None = None
    objective_improved: bool | None = None
    overlap_worse: bool | None = None
    pathology: tuple[str, ...] = ()
    occupancy_healthy: bool | None = None
    margin_worse: bool | None = None
    failed: tuple[str, ...] = ()
    clean: bool | None = None
    policy: str | None = None


@dataclass(frozen=True)
class Reading:
    """Where the rule stands after one gate.

    Attributes:
        gate: the record it reads.
        colour: ``GREEN`` (pass), ``YELLOW`` (inconclusive, or bad but not yet persistent), ``RED``
            (intervene); None for a baseline, which tests nothing.
        state: ``waiting``, ``clear``, ``undetermined``, ``first-bad``, ``alert``, ``prepare``, ``intervene``
            or ``recovering``.
        action: what to do now (Tables 6 and 13).
        meaning: overlap, occupancy and loss read jointly (Table 11).
        pattern: the likely failure object (Table 14).
        intervention: the first intervention to try (Table 14).
        rebound: overlap rose against the gate before, while the gate is still bad.
        margin_trap: State1 rose while occupancy is degraded: decisive routing to fewer experts, not health.
        decline: perplexity's rate of decline per 100 steps since the gate before, as a ratio minus one.
        decline_trend: ``gradual`` or ``constant-or-accelerating``.
    """

    gate: GateRecord
    colour: str | None
    state: str
    action: str
    meaning: str
    pattern: str
    intervention: str
    rebound: bool
    margin_trap: bool
    decline: float | None
    decline_trend: str | None


@dataclass
class _Episode:
    """From the first bad gate until recovery or a clean baseline."""

    pathology: frozenset[str]
    policy: str | None
    bad: int = 1
    worse: int = 0
    passes: int = 0
    persistent: bool = False


@dataclass
class _Run:
    """What the rule remembers between gates."""

    episode: _Episode | None = None
    before: GateRecord | None = None
    last_audit: GateRecord | None = None
    first_nll: float | None = None
    declines: list[float] = field(default_factory=list)


def escalate(gates: Iterable[GateRecord]) -> list[Reading]:
    """Read a run's gates in order; one reading for each."""
    run = _Run()
    return [_read(run, gate) for gate in gates]


def exit_code(readings: Sequence[Reading]) -> Exit:
    """What a pipeline should do at this point of the history.

    PASS only where the last gate is GREEN and no episode is open; FAIL at RED; INCONCLUSIVE everywhere else:
    nothing recorded, only a baseline, a bad gate that is not yet persistent, a first pass after a bad one.
    """
    if not readings:
        return Exit.INCONCLUSIVE
    last = readings[-1]
    if last.colour == RED:
        return Exit.FAIL
    return Exit.PASS if (last.colour, last.state) == (GREEN, CLEAR) else Exit.INCONCLUSIVE


def _read(run: _Run, gate: GateRecord) -> Reading:
    rebound = _rises(gate.overlap, run.last_audit) and gate.verdict == "fail"
    decline, trend = _decline(run, gate)
    improving = _improving(run, gate)
    colour, state = _baseline(run, gate) if gate.kind != "audit" else _audit(run, gate)
    advice = playbook.first_move(gate, state, _repairing(run.last_audit, gate))
    reading = Reading(
        gate=gate,
        colour=colour,
        state=state,
        action=playbook.ACTIONS[state],
        meaning=playbook.joint_reading(gate, improving),
        pattern=advice[0],
        intervention=advice[1],
        rebound=rebound,
        margin_trap=_margin_trap(run.before, gate),
        decline=decline,
        decline_trend=trend,
    )
    run.before = gate
    if gate.kind == "audit":
        run.last_audit = gate
    return reading


def _baseline(run: _Run, gate: GateRecord) -> tuple[None, str]:
    """A new reference: nothing is tested; an open episode ends only at a clean one under the same policy."""
    if gate.clean and run.episode is not None and gate.policy == run.episode.policy:
        run.episode = None
    return None, WAITING


def _audit(run: _Run, gate: GateRecord) -> tuple[str, str]:
    if gate.verdict == "pass":
        return _pass(run, gate)
    if run.episode is not None:
        run.episode.passes = 0
    if gate.verdict == "fail":
        return _fail(run, gate)
    if run.episode is None:
        return YELLOW, UNDETERMINED
    return (RED, INTERVENE) if run.episode.persistent else (YELLOW, ALERT)


def _pass(run: _Run, gate: GateRecord) -> tuple[str, str]:
    """A pass ends an episode only when it is repeated, and only under the policy that opened it."""
    episode = run.episode
    if episode is None:
        return GREEN, CLEAR
    if gate.policy != episode.policy:
        return (RED, INTERVENE) if episode.persistent else (YELLOW, ALERT)
    episode.passes += 1
    if episode.passes < CLEARING_PASSES:
        return GREEN, RECOVERING
    run.episode = None
    return GREEN, CLEAR


def _fail(run: _Run, gate: GateRecord) -> tuple[str, str]:
    episode = run.episode
    if episode is None:
        run.episode = _Episode(frozenset(gate.pathology), gate.policy)
        return YELLOW, FIRST_BAD
    episode.bad += 1
    episode.worse += _falls(gate.overlap, run.last_audit) and bool(episode.pathology & set(gate.pathology))
    episode.persistent |= episode.worse >= WORSE_GATES or episode.bad >= BAD_GATES
    if episode.persistent:
        return RED, INTERVENE
    return YELLOW, PREPARE if episode.worse else ALERT


def _rises(value: float | None, before: GateRecord | None) -> bool:
    return value is not None and before is not None and before.overlap is not None and value > before.overlap


def _falls(value: float | None, before: GateRecord | None) -> bool:
    return value is not None and before is not None and before.overlap is not None and value < before.overlap


def _repairing(before: GateRecord | None, gate: GateRecord) -> bool:
    """State2 improves and occupancy broadens against the gate before: fewer dead experts or more entropy."""
    if before is None or not _rises(gate.overlap, before):
        return False
    fewer_dead = _less(gate.dead_experts, before.dead_experts)
    more_entropy = _less(before.min_entropy, gate.min_entropy)
    narrower = _less(before.dead_experts, gate.dead_experts) or _less(gate.min_entropy, before.min_entropy)
    return (fewer_dead or more_entropy) and not narrower


def _less(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one < other


def _margin_trap(before: GateRecord | None, gate: GateRecord) -> bool:
    return bool(gate.pathology) and before is not None and _less(before.set_margin, gate.set_margin)


def _improving(run: _Run, gate: GateRecord) -> bool | None:
    """Whether the objective improved: as the receipt licenses it, else against the run's first figure."""
    if run.first_nll is None:
        run.first_nll = gate.nll
        return gate.objective_improved
    if gate.objective_improved is not None:
        return gate.objective_improved
    return None if gate.nll is None else gate.nll < run.first_nll


def _decline(run: _Run, gate: GateRecord) -> tuple[float | None, str | None]:
    """Perplexity's rate of decline per 100 steps since the record before, and its trend over the last two."""
    rate = None
    if run.before is not None:
        rate = decline_per_100_steps(run.before.nll, gate.nll, run.before.step, gate.step)
    if rate is None:
        run.declines.clear()
        return None, None
    run.declines.append(rate)
    return rate, decline_trend(run.declines)
