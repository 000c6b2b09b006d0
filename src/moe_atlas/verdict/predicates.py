"""The three predicates and the verdict. Nothing is averaged into one comfort score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_atlas.probes.settings.policy import CHART_STAGE, DAMAGE_STAGE, EXPANSIVE_STAGE
from moe_atlas.verdict import task as tasks
from moe_atlas.verdict.damage import DAMAGED, UNDAMAGED, damage_gates, damage_outcome
from moe_atlas.verdict.gates.gate import FAIL, UNDETERMINED, Gate, worst_first
from moe_atlas.verdict.qualifications import derive_qualified
from moe_atlas.verdict.rewrite import HARD, NOT_JUDGED, PRESERVED, REWRITTEN, atlas_gates, atlas_outcome
from moe_atlas.verdict.success import task_gates
from moe_atlas.views.receipt import ReceiptView

NAMES = ("protected_atlas_rewrite", "base_domain_damage", "knowledge_expansive")
STRUCTURAL = NAMES[:2]
UNTESTED = "untested"
LOOKED = "a look, not a verdict: nothing was registered and nothing is gated"

# What each classification is worth under each declared stage.
_CLASSIFICATION: dict[str, dict[str, bool | None]] = {
    CHART_STAGE: {
        tasks.CHART_PRESERVING: True,
        tasks.NOT_APPLICABLE: True,
        tasks.NOTHING_TUNED: True,
        tasks.TASK_NOT_REACHED: False,
        tasks.CHART_REDEFINING: False,
        tasks.KNOWLEDGE_EXPANSIVE: False,
        tasks.MISCLASSIFIED: False,
    },
    EXPANSIVE_STAGE: {
        tasks.KNOWLEDGE_EXPANSIVE: True,
        tasks.TASK_NOT_REACHED: False,
        tasks.MISCLASSIFIED: False,
    },
    DAMAGE_STAGE: {
        tasks.TASK_REACHED: True,
        tasks.NOT_APPLICABLE: True,
        tasks.NOTHING_TUNED: True,
        tasks.TASK_NOT_REACHED: False,
    },
}
_NOTHING_JUDGED = "no drift channel has both a registered budget and a measurement: nothing was judged"
_ATLAS_OPEN = "the task was reached, and whether the atlas was preserved is not known"
_OPEN_REASONS = {
    tasks.CHART_PRESERVING: "the stage declares a rewrite, but the atlas was preserved: declare chart-preserving",
    tasks.CHART_REDEFINING: "no attempt that tried, kept the atlas and missed the task was given (--attempt)",
    tasks.NOTHING_TUNED: "base and tuned hold the same values: there is no change to classify",
    tasks.NOT_APPLICABLE: "a knowledge-expansive stage cannot be judged without a task domain",
}


def derive_predicates(receipt: ReceiptView) -> dict[str, Any]:
    """Return ``predicates``, ``verdict`` and ``qualified`` of a receipt whose intervals are in place.

    A baseline tests nothing: its predicates are ``untested`` and its verdict is null. A look judges nothing: its
    predicates are ``untested`` too, and its verdict is ``inconclusive`` whatever it measured, so that nobody promotes
    on it.
    """
    qualified = derive_qualified(receipt)
    untested: dict[str, Any] = {"outcome": UNTESTED, "passed": None, "evidence": []}
    if receipt.is_baseline:
        untried = {name: dict(untested) for name in NAMES}
        return {"predicates": untried, "verdict": None, "qualified": qualified}
    if receipt.is_look:
        looked = {name: untested | {"reason": LOOKED} for name in NAMES}
        return {"predicates": looked, "verdict": "inconclusive", "qualified": qualified}
    stage = receipt.probe.policy.stage
    atlas = atlas_gates(receipt)
    outcome = atlas_outcome(atlas, judged=stage != DAMAGE_STAGE)
    damage = damage_gates(receipt)
    success = task_gates(receipt)
    classification, attempts = tasks.task_outcome(receipt, success, outcome)
    predicates = {
        "protected_atlas_rewrite": _atlas(stage, outcome, atlas),
        "base_domain_damage": _object(
            damage_outcome(damage), {UNDAMAGED: True, DAMAGED: False}.get(damage_outcome(damage)), damage
        ),
        "knowledge_expansive": _classified(stage, classification, [*success, *attempts]),
    }
    return {"predicates": predicates, "verdict": verdict_of(predicates), "qualified": qualified}


def verdict_of(predicates: Mapping[str, Mapping[str, Any]]) -> str:
    """Return ``fail`` if any predicate fails, ``pass`` if all three pass, else ``inconclusive``."""
    return _combined(predicates, NAMES)


def structural_verdict(predicates: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the verdict of atlas and damage alone: a training that has not reached its task yet is no drift."""
    return _combined(predicates, STRUCTURAL)


def _combined(predicates: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    passed = [predicates[name]["passed"] for name in names]
    if any(value is False for value in passed):
        return "fail"
    return "pass" if all(value is True for value in passed) else "inconclusive"


def _object(outcome: str, passed: bool | None, gates: list[Gate]) -> dict[str, Any]:
    return {"outcome": outcome, "passed": passed, "evidence": worst_first(gates)}


def _atlas(stage: str, outcome: str, gates: list[Gate]) -> dict[str, Any]:
    """The first predicate; where no gate is open and none failed, the reason says why it is undetermined."""
    out = _object(outcome, _atlas_passed(stage, outcome, gates), gates)
    if outcome == UNDETERMINED and all(gate.result != UNDETERMINED for gate in gates):
        out["reason"] = _NOTHING_JUDGED
    return out


def _atlas_passed(stage: str, outcome: str, gates: list[Gate]) -> bool | None:
    """No stage excuses a breach of weights or identity; stages differ in what else they let pass."""
    if any(gate.result == FAIL and gate.gate in HARD for gate in gates):
        return False
    if outcome == NOT_JUDGED:
        return True
    if outcome not in (PRESERVED, REWRITTEN):
        return None
    if stage == EXPANSIVE_STAGE:
        return None if any(gate.result == UNDETERMINED and gate.gate in HARD for gate in gates) else True
    return outcome == PRESERVED


def _classified(stage: str, outcome: str, gates: list[Gate]) -> dict[str, Any]:
    """A classification passes as its stage says, and only where none of its gates is open."""
    passed = _CLASSIFICATION.get(stage, {}).get(outcome)
    if passed and any(gate.result == UNDETERMINED for gate in gates):
        passed = None
    out = _object(outcome, passed, gates)
    settled = all(gate.result != UNDETERMINED for gate in gates)
    if passed is None and outcome in _OPEN_REASONS:
        out["reason"] = _OPEN_REASONS[outcome]
    elif outcome == UNDETERMINED and settled:
        out["reason"] = _ATLAS_OPEN
    return out
