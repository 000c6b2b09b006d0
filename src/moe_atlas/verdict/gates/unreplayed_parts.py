"""Gates on the parts of a checkpoint that a server may use and no probe token passes.

No channel sees them, so the comparison of their tensors is all there is. A part that lost its values, or holds what is
not finite, fails. One that only one checkpoint has, or that was replaced beyond what a tune does, is undetermined: an
export that drops its prediction layers is common and may be meant, but no measurement speaks for it. A policy frees a
part by name, under `allow`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_atlas.probes.settings.policy import UNREPLAYED
from moe_atlas.verdict.gates.gate import FAIL, NOT_GATED, PASS, UNDETERMINED, Gate

Receipt = Mapping[str, Any]

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


def unreplayed_gates(receipt: Receipt) -> list[Gate]:
    """Return one gate for each part that either checkpoint holds."""
    rows = (receipt.get("weights") or {}).get("unreplayed")
    if not isinstance(rows, list):
        return [Gate(GATE, UNDETERMINED, {}, {}, None, "not compared")]
    allowed = receipt["probe"]["policy"].get("allow") or ()
    return [_gate(row, row["part"] in allowed) for row in rows if row["part"] in UNREPLAYED]


def _gate(row: Mapping[str, Any], allowed: bool) -> Gate:
    where, found = {"part": row["part"]}, finding(row)
    if found is None:
        return Gate(GATE, PASS, where, {})
    if row["nonfinite"]:
        return Gate(GATE, FAIL, where, {}, None, found)
    if allowed:
        return Gate(GATE, NOT_GATED, where, {}, None, f"{found}; policy.allow permits it")
    result = FAIL if any(row[key] for key in BROKEN) else UNDETERMINED
    return Gate(GATE, result, where, {}, None, f"{found}; policy.allow: [{row['part']}] permits it")


def finding(row: Mapping[str, Any]) -> str | None:
    """What keeps a part from passing, in words; None when nothing does."""
    found = [f"{row[key]} {words}" for key, words in WORDS.items() if row[key]]
    if not found:
        return None
    count, _, rest = "; ".join(found).partition(" ")
    return f"{count} of {max(row['tensors'].values())} tensors {rest}"
