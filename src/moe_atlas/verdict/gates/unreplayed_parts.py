"""Gates on the parts of a checkpoint that a server may use and no probe token passes.

No channel sees them, so the comparison of their tensors is all there is. A part that lost its values, or holds what is
not finite, fails. One that only one checkpoint has, or that was replaced beyond what a tune does, is undetermined: an
export that drops its prediction layers is common and may be meant, but no measurement speaks for it. A policy frees a
part by name, under `allow`.
"""

from __future__ import annotations

from moe_atlas.probes.settings.policy import UNREPLAYED
from moe_atlas.verdict.gates.gate import FAIL, NOT_GATED, PASS, UNDETERMINED, Gate
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.weights import UnreplayedRow

GATE = "unreplayed"
WORDS = {
    "nonfinite": "not finite in the tuned checkpoint",
    "zeroed": "zero in the tuned checkpoint, whole or in a row",
    "replaced": "moved further than a tune moves anything",
    "missing": "missing from the tuned checkpoint",
    "added": "in the tuned checkpoint alone",
    "reshaped": "of another shape in the tuned checkpoint",
}
"""Findings that a part does not pass with, worst first."""
BROKEN = ("nonfinite", "zeroed")


def unreplayed_gates(receipt: ReceiptView) -> list[Gate]:
    """Return one gate for each part that either checkpoint holds."""
    rows = receipt.weights.unreplayed if receipt.weights else None
    if rows is None:
        return [Gate(GATE, UNDETERMINED, {}, reason="not compared")]
    policy = receipt.probe.policy
    return [_gate(row, policy.allows(row.name)) for row in rows if row.name in UNREPLAYED]


def _gate(row: UnreplayedRow, allowed: bool) -> Gate:
    where, found = {"part": row.name}, finding(row)
    if found is None:
        return Gate(GATE, PASS, where)
    if row.nonfinite:
        return Gate(GATE, FAIL, where, reason=found)
    if allowed:
        return Gate(GATE, NOT_GATED, where, reason=f"{found}; policy.allow permits it")
    result = FAIL if any(row.counts[key] for key in BROKEN) else UNDETERMINED
    return Gate(GATE, result, where, reason=f"{found}; policy.allow: [{row.name}] permits it")


def finding(row: UnreplayedRow) -> str | None:
    """What keeps a part from passing, in words; None when nothing does."""
    counts = row.counts
    found = [f"{counts[key]} {words}" for key, words in WORDS.items() if counts[key]]
    if not found:
        return None
    count, _, rest = "; ".join(found).partition(" ")
    return f"{count} of {row.tensors.most} tensors {rest}"
