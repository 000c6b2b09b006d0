"""Predicate 3: what kind of change was it, at matched task success?

No credit for preserving the atlas by failing the task; a rewrite counts as knowledge-expansive only when
chart-preserving attempts on the same base under the same registration missed the target.
"""

from __future__ import annotations

from collections.abc import Sequence

from moe_atlas.probes.settings.policy import DAMAGE_STAGE
from moe_atlas.verdict.attempts import attempt_gate
from moe_atlas.verdict.gates.gate import FAIL, PASS, UNDETERMINED, Gate
from moe_atlas.verdict.rewrite import PRESERVED, REWRITTEN
from moe_atlas.verdict.sameness import nothing_tuned
from moe_atlas.verdict.success import base_reached, reached
from moe_atlas.views.receipt import ReceiptView

NOT_APPLICABLE = "not-applicable"
TASK_NOT_REACHED = "task-not-reached"
TASK_REACHED = "task-reached"
CHART_PRESERVING = "chart-preserving"
CHART_REDEFINING = "chart-redefining"
KNOWLEDGE_EXPANSIVE = "knowledge-expansive"
MISCLASSIFIED = "misclassified"
NOTHING_TUNED = "nothing-tuned"
IDENTICAL = "identical"  # the allowance of a policy under which the two checkpoints may hold the same values


def task_outcome(receipt: ReceiptView, gates: Sequence[Gate], atlas: str) -> tuple[str, list[Gate]]:
    """Return the classification and the gates that it adds to the evidence.

    Args:
        receipt: the receipt; its ``attempts`` are facts of other receipts (`attempts`).
        gates: the task gates.
        atlas: outcome of the first predicate.
    """
    outcome, added = _classification(receipt, gates, atlas)
    if not nothing_tuned(receipt):
        return outcome, added
    # A missed task stays a missed task; whatever else would have been said of a change, there was none.
    kept = outcome in (TASK_NOT_REACHED, UNDETERMINED)
    return outcome if kept else NOTHING_TUNED, [*added, _nothing_tuned_gate(receipt)]


def _nothing_tuned_gate(receipt: ReceiptView) -> Gate:
    """Undetermined unless the policy allows it by name: an audit of nothing shows nothing about a tune."""
    same = "base and tuned hold the same values in all that is replayed"
    if receipt.probe.policy.allows(IDENTICAL):
        return Gate("nothing_tuned", PASS, {}, reason=f"{same}, which policy.allow permits")
    reason = f"{same}: nothing was tuned; policy.allow: [{IDENTICAL}] permits it"
    return Gate("nothing_tuned", UNDETERMINED, {}, reason=reason)


def _classification(receipt: ReceiptView, gates: Sequence[Gate], atlas: str) -> tuple[str, list[Gate]]:
    if not gates:
        if receipt.probe.policy.task == "none":
            return NOT_APPLICABLE, []
        return UNDETERMINED, [Gate("task_success", UNDETERMINED, {}, reason="no task domain is registered")]
    success = reached(gates)
    if success is False:
        return TASK_NOT_REACHED, []
    if success and receipt.probe.policy.stage == DAMAGE_STAGE:
        return TASK_REACHED, []
    if success is None or atlas not in (PRESERVED, REWRITTEN):
        return UNDETERMINED, []
    if atlas == PRESERVED:
        return CHART_PRESERVING, []
    return _with_attempts(receipt)


def _with_attempts(receipt: ReceiptView) -> tuple[str, list[Gate]]:
    """A reached target with a rewritten atlas: was the rewrite needed?"""
    gates = [attempt_gate(receipt, attempt) for attempt in receipt.attempts or ()]
    results = [gate.result for gate in gates]
    if FAIL in results:
        return MISCLASSIFIED, gates
    if UNDETERMINED in results:
        return UNDETERMINED, gates
    if PASS not in results:
        return CHART_REDEFINING, gates
    if base_reached(receipt) is False:
        return KNOWLEDGE_EXPANSIVE, gates
    reason = "the base is not known to miss the target: nothing shows that it took a rewrite"
    return UNDETERMINED, [*gates, Gate("base_success", UNDETERMINED, {}, reason=reason)]
