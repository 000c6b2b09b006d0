"""The layer by channel heat map, as a table: a cell says its number, its interval and, by a symbol, how it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_atlas.channels import GATED, Channel
from moe_atlas.report.words import SYMBOLS
from moe_atlas.text import number
from moe_atlas.views.judged import EvidenceLine
from moe_atlas.views.measured import Interval, LayerView, WorstExpert, no_interval
from moe_atlas.views.receipt import ReceiptView

Gates = Mapping[tuple[int | None, str], EvidenceLine]


@dataclass(frozen=True)
class Cell:
    """One channel of one layer.

    Attributes:
        estimate: in words.
        interval: in words; empty where there is none.
        bound: the simultaneous lower bound that a FAIL rests on; empty outside protected layers.
        result: ``pass``, ``fail``, ``undetermined``, ``not-applicable`` or ``not-gated``.
        symbol: the same for the eye; empty where nothing is gated.
        heat: strength of the colour, percent.
        title: everything, for a pointer.
    """

    estimate: str
    interval: str
    bound: str
    result: str
    symbol: str
    heat: int
    title: str


@dataclass(frozen=True)
class Row:
    """One layer of the map."""

    layer: int
    protected: bool
    cells: list[Cell]


def heat_map(receipt: ReceiptView) -> dict[str, Any]:
    """Headings, budgets and rows of the map."""
    policy = receipt.probe.policy
    lines = receipt.predicates["protected_atlas_rewrite"].evidence
    gates = {(line.layer, line.gate): line for line in lines}
    rows = [
        Row(
            layer.layer,
            layer.protected,
            [_cell(layer, channel, policy.budget(channel.budget), gates) for channel in GATED],
        )
        for layer in receipt.layers
    ]
    return {
        "headings": [channel.heading for channel in GATED],
        "budgets": [number(policy.budget(channel.budget)) for channel in GATED],
        "rows": rows,
        "protected": sum(row.protected for row in rows),
    }


def _cell(layer: LayerView, channel: Channel, budget: float | None, gates: Gates) -> Cell:
    value = layer.channel(channel.key) or no_interval()
    gate = gates.get((layer.layer, channel.budget))
    result = gate.result if gate and layer.protected else "not-gated"
    bound, reach = value.simultaneous_low, value.estimate if value.high is None else value.high
    return Cell(
        estimate=number(value.estimate),
        interval=_span(value),
        bound=number(bound) if bound is not None else "",
        result=result,
        symbol=SYMBOLS[result] if result != "not-gated" else "",
        heat=_heat(reach, budget),
        title=_title(result, value, budget, gate),
    )


def _span(value: Interval) -> str:
    span = "" if value.low is None or value.high is None else f"{number(value.low)} … {number(value.high)}"
    if isinstance(value, WorstExpert) and value.expert is not None:
        span = f"{span} (expert {value.expert})".strip()
    return span


def _title(result: str, value: Interval, budget: float | None, gate: EvidenceLine | None) -> str:
    bound = value.simultaneous_low
    said = [result, f"budget {number(budget)}"]
    said += [f"simultaneous bound {number(bound)}"] if bound is not None else []
    reason = value.reason or (gate.reason if gate else None)
    return "; ".join([*said, *([reason] if reason else [])])


def _heat(reach: float | None, budget: float | None) -> int:
    """Faint far below the budget, half at it, strong at ten times it."""
    if reach is None or budget is None or budget <= 0 or reach <= 0:
        return 6
    ratio = reach / budget
    return round(6 + 24 * ratio) if ratio < 1 else round(min(55.0, 30 + 25 * math.log10(ratio)))
