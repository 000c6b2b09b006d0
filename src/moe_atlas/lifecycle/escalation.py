"""The escalation rule over a run's gates: when to watch, to prepare, to intervene (Tables 6, 11, 13 and 14).

A single bad gate revokes claims but may be a fluctuation. A rebound of overlap without a change of occupancy is too
weak to trust. Two later gates that are worse with the same occupancy pathology are drift. `escalate` reads a run's
gates in order and returns the state of the rule at each gate. It is a pure function of the records, without clock or
files.

The rule reads atlas and damage only: a training reaches its task late, and a task that is not reached yet is no drift.
A pass ends an episode only if it is new evidence about the bad gates; see `_not_counted`.
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
"""Bad gates that make an episode persistent, whatever the pattern (Table 6: the fourth gate ends the waiting)."""
WORSE_GATES = 2
"""Later worse gates with the same occupancy pathology that make an episode persistent (Table 13)."""


@dataclass(frozen=True)
class Reading:
    """The state of the rule after a gate.

    Attributes:
        gate: the gate's record.
        colour: ``GREEN`` (atlas and damage pass), ``YELLOW`` (inconclusive, or bad but not yet persistent),
            ``RED`` (intervene); None for a baseline, which tests nothing.
        state: ``waiting``, ``clear``, ``task-open``, ``undetermined``, ``first-bad``, ``alert``, ``prepare``,
            ``intervene`` or ``recovering``.
        action: what to do now (Tables 6 and 13).
        meaning: overlap, occupancy and loss read jointly (Table 11).
        pattern: the likely failure object (Table 14).
        intervention: the first intervention to try (Table 14).
        rebound: whether overlap rose against the gate before although the gate is bad.
        margin_trap: whether State1 rose while occupancy is degraded: decisive routing to fewer experts, not health.
        decline: perplexity's rate of decline per 100 steps since the gate before, as a ratio minus one.
        decline_trend: ``gradual`` or ``constant-or-accelerating``.
        not_counted: reason why a pass neither clears the run nor counts towards recovery; None if it counts.
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
    """The state of the rule between gates."""

    episode: Episode | None = None
    seen: set[tuple[str | None, ...]] = field(default_factory=set)
    before: GateRecord | None = None
    last_audit: GateRecord | None = None
    first_nll: float | None = None
    declines: list[float] = field(default_factory=list)


def escalate(gates: Iterable[GateRecord]) -> list[Reading]:
    """Read a run's gates in order and return a reading for each."""
    run = _Run()
    return [_read(run, gate) for gate in gates]


def exit_code(readings: Sequence[Reading]) -> Exit:
    """Return the exit code for a pipeline after these readings.

    PASS only if the last gate is GREEN and no episode is open; FAIL at RED; INCONCLUSIVE otherwise: nothing recorded,
    only a baseline, a bad gate that is not yet persistent, a first pass after a bad gate.
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
    """Return why a pass is no evidence of recovery, a key of `playbook.NOT_COUNTED`; None if it is evidence.

    A pass must compare different weights, be new, come after the bad gates, and have the terms of one of them.
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
    """Return colour and state at a baseline; a new reference tests nothing, so it ends no episode.

    After a clean baseline under the terms of the bad gates, earlier bad gates no longer count, and a single pass ends
    the episode.
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
    """Return colour and state at a pass; it ends an episode only if repeated under all terms of the bad gates."""
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
    """Return whether overlap rises and occupancy broadens: fewer dead experts or more entropy than before."""
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
    """Return whether the objective improved: by the receipt's claim, else against the run's first NLL."""
    if run.first_nll is None:
        run.first_nll = gate.nll
        return gate.objective_improved
    if gate.objective_improved is not None:
        return gate.objective_improved
    return None if gate.nll is None else gate.nll < run.first_nll


def _decline(run: _Run, gate: GateRecord) -> tuple[float | None, str | None]:
    """Return perplexity's rate of decline per 100 steps since the record before, and the trend of two rates."""
    rate = None
    if run.before is not None:
        rate = decline_per_100_steps(run.before.nll, gate.nll, run.before.step, gate.step)
    if rate is None:
        run.declines.clear()
        return None, None
    run.declines.append(rate)
    return rate, decline_trend(run.declines)
