"""Gates over time: when to keep watching, when to prepare, when to intervene (Tables 6, 11, 13 and 14).

One bad gate revokes claims, but may be a fluctuation; a rebound of overlap that leaves occupancy as it was is
too cheap to trust; two later gates that are worse with the same occupancy pathology are drift. `escalate`
reads a run's gates in order and says, at each, where the rule stands. It is a pure function of the records:
no clock, no files.

The rule asks for atlas and damage only: a training reaches its task late, and a task that is not reached yet is no
drift. A pass ends an episode only if it says something new about the gates that failed; see `_not_counted`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from moe_atlas.errors import Exit
from moe_atlas.lifecycle import playbook
from moe_atlas.lifecycle.episodes import (
    ALERT,
    CLEAR,
    FIRST_BAD,
    GREEN,
    INTERVENE,
    PREPARE,
    RECOVERING,
    RED,
    TASK_OPEN,
    UNDETERMINED,
    WAITING,
    YELLOW,
    Episode,
    GateRecord,
)
from moe_atlas.lifecycle.perplexity import decline_per_100_steps, decline_trend

BAD_GATES = 4
"""Bad gates of one episode that are persistent whatever the pattern (Table 6: the fourth gate ends the waiting)."""
WORSE_GATES = 2
"""Later worse gates with the same occupancy pathology that make a pattern persistent (Table 13)."""


@dataclass(frozen=True)
class Reading:
    """Where the rule stands after one gate.

    Attributes:
        gate: the record it reads.
        colour: ``GREEN`` (atlas and damage pass), ``YELLOW`` (inconclusive, or bad but not yet persistent),
            ``RED`` (intervene); None for a baseline, which tests nothing.
        state: ``waiting``, ``clear``, ``task-open``, ``undetermined``, ``first-bad``, ``alert``, ``prepare``,
            ``intervene`` or ``recovering``.
        action: what to do now (Tables 6 and 13).
        meaning: overlap, occupancy and loss read jointly (Table 11).
        pattern: the likely failure object (Table 14).
        intervention: the first intervention to try (Table 14).
        rebound: overlap rose against the gate before, while the gate is still bad.
        margin_trap: State1 rose while occupancy is degraded: decisive routing to fewer experts, not health.
        decline: perplexity's rate of decline per 100 steps since the gate before, as a ratio minus one.
        decline_trend: ``gradual`` or ``constant-or-accelerating``.
        not_counted: why a pass neither clears the run nor brings an episode nearer to its end; None where it does.
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
    not_counted: str | None


@dataclass
class _Run:
    """What the rule remembers between gates."""

    episode: Episode | None = None
    seen: set[tuple[str | None, ...]] = field(default_factory=set)
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
    rebound = _rises(gate.overlap, run.last_audit) and gate.standing == "fail"
    decline, trend = _decline(run, gate)
    improving = _improving(run, gate)
    not_counted = _not_counted(run, gate)
    colour, state = _baseline(run, gate) if gate.kind != "audit" else _audit(run, gate, not_counted)
    advice = playbook.first_move(gate, state, _repairing(run.last_audit, gate), not_counted)
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
        not_counted=playbook.NOT_COUNTED[not_counted][0] if not_counted else None,
    )
    run.before = gate
    if gate.kind == "audit" and not gate.identical:
        run.last_audit = gate
        run.seen.add((gate.weights, *gate.terms))
    return reading


def _not_counted(run: _Run, gate: GateRecord) -> str | None:
    """Why a pass is not evidence of recovery, a key of `playbook.NOT_COUNTED`; None where it is.

    It must compare something, be new, stand after the gates that failed, and be judged as one of them was.
    """
    if gate.standing != "pass":
        return None
    if gate.identical:
        return "identical"
    episode = run.episode
    if episode is None:
        return None
    if gate.weights is not None and (gate.weights, *gate.terms) in run.seen:
        return "seen"
    if gate.step is not None and episode.step is not None and gate.step < episode.step:
        return "older"
    differences = [terms.differs_in(gate) for terms in episode.terms]
    return None if None in differences else differences[0]


def _baseline(run: _Run, gate: GateRecord) -> tuple[None, str]:
    """A new reference tests nothing, so it ends no episode.

    After a clean one, judged as the bad gates were, what was bad before counts no longer, and one pass is enough.
    """
    episode = run.episode
    if episode is not None:
        episode.step = None
        if gate.clean and all(terms.differs_in(gate) is None for terms in episode.terms):
            episode.bad, episode.worse, episode.persistent, episode.needed = 0, 0, False, 1
    return None, WAITING


def _audit(run: _Run, gate: GateRecord, not_counted: str | None) -> tuple[str, str]:
    episode = run.episode
    if gate.standing == "pass" and not not_counted:
        return _pass(run, gate)
    if gate.standing != "pass" and episode is not None:
        for terms in episode.terms:
            terms.passes = 0
    if gate.standing == "fail":
        return _fail(run, gate)
    return (YELLOW, UNDETERMINED) if episode is None else episode.stands


def _pass(run: _Run, gate: GateRecord) -> tuple[str, str]:
    """A pass ends an episode only when it is repeated, under everything that its bad gates were judged by."""
    episode = run.episode
    if episode is not None:
        for terms in episode.terms:
            terms.passes += terms.differs_in(gate) is None
        if any(terms.passes < episode.needed for terms in episode.terms):
            return GREEN, RECOVERING
        run.episode = None
    return GREEN, CLEAR if gate.verdict == "pass" else TASK_OPEN


def _fail(run: _Run, gate: GateRecord) -> tuple[str, str]:
    episode = run.episode
    if episode is None or not episode.bad:
        known = [] if episode is None else episode.terms
        run.episode = Episode(frozenset(gate.pathology), gate.step, known)
        run.episode.judged_by(gate)
        return YELLOW, FIRST_BAD
    episode.judged_by(gate)
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
