"""Predicate 3: what kind of change was it, at matched task success?

No credit for preserving the atlas by failing the task; a rewrite counts as knowledge-expansive only when
chart-preserving attempts on the same base under the same registration missed the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_atlas.verdict.atlas import PRESERVED, REWRITTEN
from moe_atlas.verdict.gates import FAIL, PASS, UNDETERMINED, Gate, is_number, too_few

Receipt = Mapping[str, Any]

NOT_APPLICABLE = "not-applicable"
TASK_NOT_REACHED = "task-not-reached"
CHART_PRESERVING = "chart-preserving"
CHART_REDEFINING = "chart-redefining"
KNOWLEDGE_EXPANSIVE = "knowledge-expansive"
MISCLASSIFIED = "misclassified"
NOTHING_TUNED = "nothing-tuned"
IDENTICAL = "identical"  # the allowance of a policy under which the two checkpoints may hold the same values


def task_gates(receipt: Receipt) -> list[Gate]:
    """Return one gate a task domain: reached (pass), missed (fail) or undetermined."""
    return [_success_gate(row, "value") for row in receipt["domains"] if row["role"] == "task"]


def base_reached(receipt: Receipt) -> bool | None:
    """Whether the base alone reaches every task's target; None when that is undetermined."""
    return reached([_success_gate(row, "base") for row in receipt["domains"] if row["role"] == "task"])


def nothing_tuned(receipt: Receipt) -> bool:
    """Whether base and tuned hold the same values: said by the audit, or plain from the digests."""
    if (receipt.get("identity") or {}).get("identical_checkpoints") is True:
        return True
    base, tuned = ((receipt.get("checkpoints") or {}).get(side) or {} for side in ("base", "tuned"))
    keys = ("digest", "config_sha256")
    return all(base.get(key) is not None and base.get(key) == tuned.get(key) for key in keys)


def _success_gate(row: Mapping[str, Any], side: str) -> Gate:
    """Hold a task's rule against one side of ``success``: ``value`` is the tuned checkpoint, ``base`` the base."""
    found = row.get("success") or {}
    value = found.get(side) or {"reason": "no success rule"}
    upper = is_number(found.get("at_most"))
    limit = found.get("at_most") if upper else found.get("at_least")
    name = f"{found.get('metric')}{'_gain' if found.get('relative_to_base') else ''}"

    def verdict(result: str, reason: str | None = None) -> Gate:
        return Gate("task_success", result, {"domain": row["name"]}, value, limit, reason or name)

    if limit is None or not is_number(limit) or not is_number(value.get("estimate")):
        return verdict(UNDETERMINED, value.get("reason") or "missing")
    if value.get("exact") is True:
        reached = value["estimate"] <= limit if upper else value["estimate"] >= limit
        return verdict(PASS if reached else FAIL)
    floor = too_few(row["documents"]) or too_few(value.get("documents"))
    if floor is not None:
        return verdict(UNDETERMINED, floor)
    low, high = value.get("low"), value.get("high")
    good, bad = (high, low) if upper else (low, high)
    sign = 1.0 if upper else -1.0
    if is_number(good) and good is not None and sign * good < sign * limit:
        return verdict(PASS)
    if is_number(bad) and bad is not None and sign * bad > sign * limit:
        return verdict(FAIL)
    return verdict(UNDETERMINED, value.get("reason") or "the interval does not clear the target")


def reached(gates: Sequence[Gate]) -> bool | None:
    """Whether every task domain reached its target; None when that is undetermined."""
    if any(gate.result == FAIL for gate in gates):
        return False
    return True if gates and all(gate.result == PASS for gate in gates) else None


def task_outcome(receipt: Receipt, gates: Sequence[Gate], atlas: str) -> tuple[str, list[Gate]]:
    """Return the classification and the gates that it adds to the evidence.

    Args:
        receipt: the receipt; its ``attempts`` are facts of other receipts (`attempt_facts`).
        gates: the task gates.
        atlas: outcome of the first predicate.
    """
    outcome, added = _classification(receipt, gates, atlas)
    if not nothing_tuned(receipt):
        return outcome, added
    # A missed task stays a missed task; whatever else would have been said of a change, there was none.
    kept = outcome in (TASK_NOT_REACHED, UNDETERMINED)
    return outcome if kept else NOTHING_TUNED, [*added, _nothing_tuned_gate(receipt)]


def _nothing_tuned_gate(receipt: Receipt) -> Gate:
    """Undetermined unless the policy allows it by name: an audit of nothing shows nothing about a tune."""
    same = "base and tuned hold the same values"
    if IDENTICAL in (receipt["probe"]["policy"].get("allow") or ()):
        return Gate("nothing_tuned", PASS, {}, {}, None, f"{same}, which policy.allow permits")
    reason = f"{same}: nothing was tuned; policy.allow: [{IDENTICAL}] permits it"
    return Gate("nothing_tuned", UNDETERMINED, {}, {}, None, reason)


def _classification(receipt: Receipt, gates: Sequence[Gate], atlas: str) -> tuple[str, list[Gate]]:
    if not gates:
        if receipt["probe"]["policy"].get("task") == "none":
            return NOT_APPLICABLE, []
        return UNDETERMINED, [
            Gate("task_success", UNDETERMINED, {}, {}, None, "no task domain is registered")
        ]
    success = reached(gates)
    if success is False:
        return TASK_NOT_REACHED, []
    if success is None or atlas not in (PRESERVED, REWRITTEN):
        return UNDETERMINED, []
    if atlas == PRESERVED:
        return CHART_PRESERVING, []
    return _with_attempts(receipt)


def attempt_facts(receipt: Receipt) -> dict[str, Any]:
    """Return what a verified audit receipt contributes as an attempt; goes into ``receipt["attempts"]``."""
    checkpoints, predicates = receipt["checkpoints"], receipt["predicates"]
    gates = task_gates(receipt)
    return {
        "receipt_sha256": receipt["evidence"]["receipt_sha256"],
        "base_digest": checkpoints["base"]["digest"],
        "tuned_digest": checkpoints["tuned"]["digest"],
        "lock_digest": receipt["probe"]["lock"]["sha256"],
        "protected_atlas_rewrite": predicates["protected_atlas_rewrite"]["outcome"],
        "task_reached": reached(gates),
    }


def _with_attempts(receipt: Receipt) -> tuple[str, list[Gate]]:
    """A reached target with a rewritten atlas: was the rewrite needed?"""
    gates = [_attempt_gate(receipt, attempt) for attempt in receipt.get("attempts") or ()]
    results = [gate.result for gate in gates]
    if FAIL in results:
        return MISCLASSIFIED, gates
    if UNDETERMINED in results:
        return UNDETERMINED, gates
    return (KNOWLEDGE_EXPANSIVE if PASS in results else CHART_REDEFINING), gates


def _attempt_gate(receipt: Receipt, attempt: Mapping[str, Any]) -> Gate:
    """Pass: a chart-preserving attempt that missed the target; fail: one that reached it."""
    where = {"attempt": attempt.get("receipt_sha256")}
    own = receipt.get("checkpoints") or {}
    base, lock = (own.get("base") or {}).get("digest"), (receipt["probe"].get("lock") or {}).get("sha256")
    if base is None or attempt.get("base_digest") != base:
        return Gate("attempt", NOT_APPLICABLE, where, {}, None, "another base checkpoint")
    if lock is None or attempt.get("lock_digest") != lock:
        return Gate("attempt", NOT_APPLICABLE, where, {}, None, "another registration")
    atlas, success = attempt.get("protected_atlas_rewrite"), attempt.get("task_reached")
    if atlas == REWRITTEN:
        return Gate("attempt", NOT_APPLICABLE, where, {}, None, "it rewrote the atlas too")
    if atlas == PRESERVED and success is False:
        return Gate("attempt", PASS, where, {}, None, "chart-preserving, target missed")
    if atlas == PRESERVED and success is True:
        return Gate(
            "attempt", FAIL, where, {}, None, "chart-preserving, target reached: the rewrite was avoidable"
        )
    if success is False:
        return Gate("attempt", NOT_APPLICABLE, where, {}, None, "target missed, atlas undetermined")
    return Gate("attempt", UNDETERMINED, where, {}, None, "its outcome is undetermined")
