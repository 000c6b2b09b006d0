"""The words of single numbers: how often its limit a number is, what that limit is called, the unit of a loss."""

from __future__ import annotations

from moe_atlas.text import number
from moe_atlas.verdict.gates.gate import limit_name
from moe_atlas.views.judged import EvidenceLine
from moe_atlas.views.receipt import ReceiptView

NO_BUDGET = "no budget registered; measured"
MULTIPLES = frozenset({"budget", "margin", "limit"})
"""Limits that a number stays below: how often its limit it is says how far it is from it."""


def multiple(value: float | None, limit: float | None) -> float | None:
    """Return how often its limit a value is; None where nothing says so."""
    return None if value is None or not limit or limit < 0 or value < 0 else value / limit


def times(value: float | None, limit: float | None) -> str:
    """A value as a multiple of its limit, such as ``12 ×``; empty where it is none."""
    ratio = multiple(value, limit)
    if ratio is None:
        return ""
    return f"{ratio:,.0f} ×".replace(",", "\u202f") if ratio >= 100 else f"{number(ratio, 2)} ×"


def limit(line: EvidenceLine) -> str:
    """What a gate held its estimate against: ``12 × margin 0.22``, ``target 0.8``; empty for no limit."""
    if line.budget is None:
        return ""
    name = limit_name(line.gate)
    often = times(line.estimate, line.budget) if name in MULTIPLES else ""
    return f"{often} {name} {number(line.budget)}".strip()


def loss(receipt: ReceiptView, increase: float) -> str:
    """A change of loss: ``2.58 nats a byte worse``."""
    if increase == 0.0:
        return "kept its loss"
    return f"got {number(abs(increase))} {unit(receipt)} {'worse' if increase > 0 else 'better'}"


def unit(receipt: ReceiptView) -> str:
    """The unit of a loss: a token of a probe without a tokenizer is a byte."""
    return "nats a byte" if receipt.probe.tokenizer.kind == "bytes" else "nats a token"
