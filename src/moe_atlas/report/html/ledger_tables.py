"""Rows of the weights ledger, and of the vocabulary row by row."""

from __future__ import annotations

from typing import Any, Literal

from moe_atlas.text import number
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.registered import WeightRules
from moe_atlas.views.weights import BothCounts, ExtraRows, VocabularyRows, WeightClass

Where = Literal["seen", "unseen"]
WHERE: dict[Where, str] = {"seen": "in a probe window", "unseen": "in no probe window"}
SIDES = ("base", "tuned")


def weights(receipt: ReceiptView) -> list[dict[str, Any]]:
    """The weights ledger by class, with the registered rule; classes without tensors are left out."""
    classes = (receipt.weights.classes if receipt.weights else None) or {}
    rules, sides = receipt.probe.policy.weights, SIDES[:1] if receipt.is_baseline else SIDES
    return [_class(name, entry, rules, sides) for name, entry in classes.items() if entry.tensors]


def _class(
    name: str, entry: WeightClass, rules: WeightRules | None, sides: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "name": name.replace("_", " "),
        "tensors": entry.tensors,
        "changed": _plain(entry.changed),
        "relative": number(entry.relative_change),
        "zeros": " → ".join(_side(entry.zeros, side) for side in sides),
        "nonfinite": _side(entry.nonfinite, sides[-1]),
        "rule": _rule(name, rules),
    }


def _rule(name: str, rules: WeightRules | None) -> str:
    found = {
        "must change": (rules.must_change if rules else None) or (),
        "must not change": (rules.must_not_change if rules else None) or (),
    }
    return ", ".join(rule for rule, names in found.items() if name in names) or "–"


def vocabulary(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Embedding and head row by row: ids that the probe reads beside those that it does not, and those of one side."""
    ends = receipt.vocabulary.compared if receipt.vocabulary else {}
    extra = [_extra_rows(end, rows.extra) for end, rows in ends.items() if rows.extra]
    return extra + [_rows(end, rows, where) for end, rows in ends.items() for where in WHERE]


def _rows(end: str, rows: VocabularyRows, where: Where) -> dict[str, Any]:
    return {
        "end": end,
        "ids": str(rows.seen if where == "seen" else rows.rows - rows.seen),
        "where": WHERE[where],
        "changed": str(getattr(rows.changed, where)),
        "median": number(getattr(rows.median_change, where)),
        "largest": number(getattr(rows.largest_change, where)),
        "outlying": str(getattr(rows.outlying, where)),
    }


def _extra_rows(end: str, extra: ExtraRows) -> dict[str, Any]:
    where = f"in the {extra.side} checkpoint alone, from id {extra.first} on"
    row = {"end": end, "ids": str(extra.rows), "where": where}
    return row | dict.fromkeys(("changed", "median", "largest", "outlying"), "–")


def _side(counts: BothCounts | None, side: str) -> str:
    return _plain(None if counts is None else counts.base if side == "base" else counts.tuned)


def _plain(value: Any) -> str:
    return "–" if value is None else str(value)
