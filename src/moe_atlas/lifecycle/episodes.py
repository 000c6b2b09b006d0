"""What a gate was, and what is open between a bad one and the recovery from it; `escalation` holds the rule."""

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
    """What one receipt says about the run at one point; None where it does not say.

    Attributes:
        kind: ``baseline``, ``resume`` (a baseline after an interruption) or ``audit``.
        step: training step.
        verdict: ``pass``, ``fail`` or ``inconclusive``; None for a baseline.
        structure: the same of atlas and damage alone; None where the entry does not say, `verdict` stands for it then.
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
        registration: digest of what was registered: windows, tokenizer and policy.
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
        """What the rule reads: the verdict of atlas and damage."""
        return self.structure or self.verdict

    @property
    def terms(self) -> tuple[str | None, str | None, str | None]:
        """What it was judged by: policy, registration and base."""
        return self.policy, self.registration, self.base


@dataclass
class Terms:
    """Policy, registration and base of a bad gate, and the passes in a row under the very same ones."""

    values: tuple[str | None, str | None, str | None]
    passes: int = 0

    def differs_in(self, gate: GateRecord) -> str | None:
        """What the gate was judged by that this is not; None where nothing differs.

        Entries of earlier versions name no registration and no base: what they do not say is no difference.
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
        pathology: of the first bad gate.
        step: of the last bad gate; None once a new baseline says where the run went on.
        terms: what its bad gates were judged by; recovery answers for all of them.
        bad: bad gates since the first, or since the last clean baseline.
        worse: those with less overlap than the gate before and the same pathology.
        persistent: whether it is drift.
        needed: passes in a row that end it.
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
        """Colour and state at a gate that neither fails nor counts as a pass."""
        if self.persistent:
            return RED, INTERVENE
        return YELLOW, ALERT if self.bad else UNDETERMINED

    def judged_by(self, gate: GateRecord) -> None:
        """Note the terms and the step of a bad gate."""
        self.step = gate.step
        if all(terms.values != gate.terms for terms in self.terms):
            self.terms.append(Terms(gate.terms))
