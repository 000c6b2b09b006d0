"""Was a rewrite needed? What other tunes of the same base, judged under the same registration, say to that.

An attempt counts where it really tried: it is another tune than the one under judgement, it changed something, and it
improved the task for certain. A tune that moved nothing misses every target, and does not show what the target takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_atlas.verdict.gates.gate import FAIL, NOT_APPLICABLE, PASS, UNDETERMINED, Gate
from moe_atlas.verdict.sameness import nothing_tuned, weights_identity
from moe_atlas.verdict.success import reached, task_gates, task_improved

Receipt = Mapping[str, Any]


def attempt_facts(receipt: Receipt) -> dict[str, Any]:
    """Return what a verified audit receipt contributes as an attempt; goes into ``receipt["attempts"]``."""
    checkpoints, predicates = receipt["checkpoints"], receipt["predicates"]
    return {
        "receipt_sha256": receipt["evidence"]["receipt_sha256"],
        "base_digest": checkpoints["base"]["digest"],
        "tuned_digest": checkpoints["tuned"]["digest"],
        "tuned_weights": weights_identity(checkpoints["tuned"]),
        "lock_digest": receipt["probe"]["lock"]["sha256"],
        "protected_atlas_rewrite": predicates["protected_atlas_rewrite"]["outcome"],
        "task_reached": reached(task_gates(receipt)),
        "task_improved": task_improved(receipt),
        "nothing_tuned": nothing_tuned(receipt),
    }


def attempt_gate(receipt: Receipt, attempt: Mapping[str, Any]) -> Gate:
    """Pass: a chart-preserving attempt that tried and missed the target; fail: one that reached it."""
    result, reason = (
        _said(attempt) if (why := _no_attempt(receipt, attempt)) is None else (NOT_APPLICABLE, why)
    )
    return Gate("attempt", result, {"attempt": attempt.get("receipt_sha256")}, {}, None, reason)


def _no_attempt(receipt: Receipt, attempt: Mapping[str, Any]) -> str | None:
    """Why an attempt says nothing about this pair, None when it does; what is missing never counts."""
    base, tuned = ((receipt.get("checkpoints") or {}).get(side) or {} for side in ("base", "tuned"))
    lock = (receipt["probe"].get("lock") or {}).get("sha256")
    if base.get("digest") is None or attempt.get("base_digest") != base["digest"]:
        return "another base checkpoint"
    if lock is None or attempt.get("lock_digest") != lock:
        return "another registration"
    names = {attempt.get("tuned_digest"), attempt.get("tuned_weights")}
    if attempt.get("nothing_tuned") is not False or names & {None, *_names(base)}:
        return "nothing was tuned in it"
    if tuned.get("digest") is None or names & _names(tuned):
        return "it is the pair under judgement"
    return None


def _names(checkpoint: Mapping[str, Any]) -> set[str | None]:
    return {checkpoint.get("digest"), weights_identity(checkpoint)}


def _said(attempt: Mapping[str, Any]) -> tuple[str, str]:
    kept = attempt.get("protected_atlas_rewrite")
    success = attempt.get("task_reached")
    if kept == "rewritten":
        return NOT_APPLICABLE, "it rewrote the atlas too"
    if kept == "preserved" and success is True:
        return FAIL, "chart-preserving, target reached: the rewrite was avoidable"
    if success is not False:
        return UNDETERMINED, "its outcome is undetermined"
    if kept != "preserved":
        return NOT_APPLICABLE, "target missed, atlas undetermined"
    if attempt.get("task_improved") is not True:
        return (
            NOT_APPLICABLE,
            "target missed, and it did not improve the task: it does not show what that takes",
        )
    return PASS, "chart-preserving, target missed"
