"""The layer by channel heat map, as a table: a cell says its number, its interval and, by a symbol, how it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_atlas.channels import GATED, Channel
from moe_atlas.report.words import SYMBOLS, Receipt
from moe_atlas.text import number


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


def heat_map(receipt: Receipt) -> dict[str, Any]:
    """Headings, budgets and rows of the map."""
    budgets = receipt["probe"]["policy"]["rewrite"]
    gates = {
        (line.get("layer"), line["gate"]): line
        for line in receipt["predicates"]["protected_atlas_rewrite"]["evidence"]
    }
    rows = [
        Row(
            layer["layer"],
            layer["protected"],
            [_cell(layer, channel, budgets.get(channel.budget), gates) for channel in GATED],
        )
        for layer in receipt["layers"]
    ]
    return {
        "headings": [channel.heading for channel in GATED],
        "budgets": [number(budgets.get(channel.budget)) for channel in GATED],
        "rows": rows,
        "protected": sum(row.protected for row in rows),
    }


def _cell(
    layer: Mapping[str, Any], channel: Channel, budget: Any, gates: Mapping[Any, Mapping[str, Any]]
) -> Cell:
    value = (layer.get("pair") or {}).get(channel.key) or {"reason": "missing"}
    gate = gates.get((layer["layer"], channel.budget))
    result = str(gate["result"]) if gate and layer["protected"] else "not-gated"
    estimate, low, high = (value.get(key) for key in ("estimate", "low", "high"))
    span = f"{number(low)} … {number(high)}" if low is not None and high is not None else ""
    if value.get("expert") is not None:
        span = f"{span} (expert {value['expert']})".strip()
    bound = value.get("simultaneous_low")
    reason = value.get("reason") or (gate or {}).get("reason") or ""
    said = [
        f"budget {number(budget)}",
        *([f"simultaneous bound {number(bound)}"] if bound is not None else []),
    ]
    return Cell(
        estimate=number(estimate),
        interval=span,
        bound=number(bound) if bound is not None else "",
        result=result,
        symbol=SYMBOLS[result] if result != "not-gated" else "",
        heat=_heat(high if high is not None else estimate, budget),
        title="; ".join([result, *said, *([str(reason)] if reason else [])]),
    )


def _heat(reach: Any, budget: Any) -> int:
    """Faint far below the budget, half at it, strong at ten times it."""
    if not isinstance(reach, int | float) or not isinstance(budget, int | float) or budget <= 0 or reach <= 0:
        return 6
    ratio = reach / budget
    return round(6 + 24 * ratio) if ratio < 1 else round(min(55.0, 30 + 25 * math.log10(ratio)))
