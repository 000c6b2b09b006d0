"""Was a rewrite needed? What other tunes of the same base, judged under the same registration, say to that.

An attempt counts where it really tried: it is another tune than the one under judgement, it changed something, and it
improved the task for certain. A tune that moved nothing misses every target, and does not show what the target takes.
"""

from __future__ import annotations

from typing import Any

from moe_atlas.verdict.gates.gate import FAIL, NOT_APPLICABLE, PASS, UNDETERMINED, Gate
from moe_atlas.verdict.sameness import nothing_tuned, weights_identity
from moe_atlas.verdict.success import reached, task_gates, task_improved
from moe_atlas.views.judged import Attempt
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.registered import CheckpointFacts


def attempt_facts(receipt: ReceiptView) -> dict[str, Any]:
    """Return what a verified audit receipt contributes as an attempt; goes into ``receipt["attempts"]``."""
    checkpoints, lock = receipt.checkpoints, receipt.probe.lock
    return {
        "receipt_sha256": receipt.evidence.receipt_sha256,
        "base_digest": checkpoints["base"].digest,
        "tuned_digest": checkpoints["tuned"].digest,
        "tuned_weights": weights_identity(checkpoints["tuned"]),
        "lock_digest": lock and lock.sha256,
        "protected_atlas_rewrite": receipt.predicates["protected_atlas_rewrite"].outcome,
        "task_reached": reached(task_gates(receipt)),
        "task_improved": task_improved(receipt),
        "nothing_tuned": nothing_tuned(receipt),
    }


def attempt_gate(receipt: ReceiptView, attempt: Attempt) -> Gate:
    """Pass: a chart-preserving attempt that tried and missed the target; fail: one that reached it."""
    result, reason = (
        _said(attempt) if (why := _no_attempt(receipt, attempt)) is None else (NOT_APPLICABLE, why)
    )
    return Gate("attempt", result, {"attempt": attempt.receipt_sha256}, reason=reason)


def _no_attempt(receipt: ReceiptView, attempt: Attempt) -> str | None:
    """Why an attempt says nothing about this pair, None when it does; what is missing never counts."""
    base, tuned = (receipt.checkpoint(side) for side in ("base", "tuned"))
    lock = receipt.probe.lock and receipt.probe.lock.sha256
    if base.digest is None or attempt.base_digest != base.digest:
        return "another base checkpoint"
    if lock is None or attempt.lock_digest != lock:
        return "another registration"
    names = {attempt.tuned_digest, attempt.tuned_weights}
    if attempt.nothing_tuned is not False or names & {None, *_names(base)}:
        return "nothing was tuned in it"
    if tuned.digest is None or names & _names(tuned):
        return "it is the pair under judgement"
    return None


def _names(checkpoint: CheckpointFacts) -> set[str | None]:
    return {checkpoint.digest, weights_identity(checkpoint)}


def _said(attempt: Attempt) -> tuple[str, str]:
    kept = attempt.protected_atlas_rewrite
    success = attempt.task_reached
    if kept == "rewritten":
        return NOT_APPLICABLE, "it rewrote the atlas too"
    if kept == "preserved" and success is True:
        return FAIL, "chart-preserving, target reached: the rewrite was avoidable"
    if success is not False:
        return UNDETERMINED, "its outcome is undetermined"
    if kept != "preserved":
        return NOT_APPLICABLE, "target missed, atlas undetermined"
    if attempt.task_improved is not True:
        return (
            NOT_APPLICABLE,
            "target missed, and it did not improve the task: it does not show what that takes",
        )
    return PASS, "chart-preserving, target missed"
