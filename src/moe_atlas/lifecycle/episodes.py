"""The record of a gate, and the episode from a bad gate to recovery; `escalation` holds the rule."""

from __future__ import annotations

from dataclasses import dataclass

GREEN, YELLOW, RED = "GREEN", "YELLOW", "RED"

EMPTY = "empty"
WAITING = "waiting"
CLEAR = "clear"
TASK_OPEN = "task-open"
UNDETERMINED = "undetermined"
FIRST_BAD = "first-bad"
ALERT = "alert"
PREPARE = "prepare"
INTERVENE = "intervene"
RECOVERING = "recovering"

CLEARING_PASSES = 2
"""Passes in a row that end an episode (Table 14: repeated gates before recovery is declared)."""


@dataclass(frozen=True)
class GateRecord:
    """The facts of a receipt that the rule reads; None for a fact that the receipt does not hold.

    Attributes:
        kind: ``baseline``, ``resume`` (a baseline after an interruption) or ``audit``.
        step: training step.
        verdict: ``pass``, ``fail`` or ``inconclusive``; None for a baseline.
        structure: verdict on atlas and damage alone; if the entry has none, `verdict` takes its place.
        overlap: co-active overlap C2 of the checkpoint, mean over protected layers.
        set_margin: State1, mean over protected layers.
        dead_experts: mean over protected layers.
        load_cv: mean over protected layers, a ratio.
        min_entropy: least load entropy of the protected layers, nats.
        nll: NLL of the task domains, or of the base domains if there is no task; nats per token.
        objective_improved: whether the receipt licenses that the objective improved against its base.
        overlap_worse: whether the receipt licenses that overlap is worse than the base's.
        pathology: the occupancy measures that it licenses as degraded: ``dead_share``, ``entropy``, ``load_cv``.
        occupancy_healthy: whether it licenses that no measure is degraded; False if `pathology` is not empty.
        margin_worse: whether it licenses that set margins fell in every protected layer.
        failed: the gates that failed.
        clean: for a baseline: whether overlap and occupancy equal the run's first reference, to within budgets.
        policy: digest of the policy that judged the gate.
        registration: digest of the registered windows, tokenizer and policy.
        base: identity of the base checkpoint, weights and config.
        weights: identity of the tuned weights.
        identical: base and tuned hold the same weights.
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
    structure: str | None = None
    registration: str | None = None
    base: str | None = None
    weights: str | None = None
    identical: bool = False

    @property
    def standing(self) -> str | None:
        """Return the verdict that the rule reads: on atlas and damage alone."""
        return self.structure or self.verdict

    @property
    def terms(self) -> tuple[str | None, str | None, str | None]:
        """Return the terms that judged the gate: policy, registration and base."""
        return self.policy, self.registration, self.base


@dataclass
class Terms:
    """Policy, registration and base of a bad gate, and the number of passes in a row under the same terms."""

    values: tuple[str | None, str | None, str | None]
    passes: int = 0

    def differs_in(self, gate: GateRecord) -> str | None:
        """Return the name of the first term in which the gate differs, None if it differs in none.

        Entries of earlier versions name no registration and no base; a missing term is no difference.
        """
        for name, mine, other in zip(
            ("policy", "registration", "base"), self.values, gate.terms, strict=True
        ):
            if mine != other and (name == "policy" or None not in (mine, other)):
                return name
        return None


@dataclass
class Episode:
    """From the first bad gate until recovery.

    Attributes:
        pathology: pathology of the first bad gate.
        step: step of the last bad gate; None after a new baseline, from which the run goes on.
        terms: the terms of its bad gates; recovery needs passes under each of them.
        bad: number of bad gates since the first, or since the last clean baseline.
        worse: number of bad gates with less overlap than the gate before and the same pathology.
        persistent: whether the episode counts as drift.
        needed: number of passes in a row that end the episode.
    """

    pathology: frozenset[str]
    step: int | None
    terms: list[Terms]
    bad: int = 1
    worse: int = 0
    persistent: bool = False
    needed: int = CLEARING_PASSES

    @property
    def stands(self) -> tuple[str, str]:
        """Return colour and state at a gate that neither fails nor counts as a pass."""
        if self.persistent:
            return RED, INTERVENE
        return YELLOW, ALERT if self.bad else UNDETERMINED

    def judged_by(self, gate: GateRecord) -> None:
        """Note the terms and the step of a bad gate."""
        self.step = gate.step
        if all(terms.values != gate.terms for terms in self.terms):
            self.terms.append(Terms(gate.terms))
