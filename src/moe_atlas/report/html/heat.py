"""The layer by channel heat map, as a table: a cell says its number, its interval and, by a symbol, how it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_atlas.channels import GATED, Channel
from moe_atlas.report.figures import multiple, times
from moe_atlas.report.words import SYMBOLS
from moe_atlas.report.yardstick import copies
from moe_atlas.text import number
from moe_atlas.views.judged import EvidenceLine
from moe_atlas.views.measured import Interval, LayerView, WorstExpert, no_interval
from moe_atlas.views.receipt import ReceiptView

CELLS_UP_TO = 12  # layers that one screen holds as cells
STEPS = ((0.1, "pass"), (0.5, "pass"), (1.0, "undetermined"), (3.0, "fail"), (10.0, "fail"))
SHARES = (0.0, 0.25, 0.5, 1.0)
Gates = Mapping[tuple[int | None, str], EvidenceLine]


@dataclass(frozen=True)
class Cell:
    """One channel of one layer.

    Attributes:
        times: the estimate as a multiple of its budget; empty where there is no budget.
        estimate: in words, with its multiple of a 4-bit copy's.
        interval: in words; empty where there is none.
        bound: the simultaneous lower bound that a FAIL rests on; empty outside protected layers.
        result: ``pass``, ``fail``, ``undetermined``, ``not-applicable`` or ``not-gated``.
        symbol: the same for the eye; empty where nothing is gated.
        heat: strength of the colour, percent.
        title: everything, for a pointer.
    """

    times: str
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
        for layer in _worst(receipt)
    ]
    return {
        "headings": [channel.heading for channel in GATED],
        "budgets": [number(policy.budget(channel.budget)) for channel in GATED],
        "rows": rows,
        "protected": len(receipt.protected),
        "layers": len(receipt.layers),
        "legend": legend(),
    }


def legend() -> list[dict[str, Any]]:
    """What the colours stand for: multiples of a budget, then shares of what a channel without a budget can reach."""
    judged = [{"heat": _heat(ratio, 1.0), "tone": tone, "says": f"{ratio:g} ×"} for ratio, tone in STEPS]
    measured = [
        {"heat": _measured_heat(share, 1.0), "tone": "not-gated", "says": f"{100 * share:g} %"}
        for share in SHARES
    ]
    return [
        {"of": "of the budget", "steps": judged},
        {"of": "of the largest possible value, where no budget is registered", "steps": measured},
    ]


def _worst(receipt: ReceiptView) -> list[LayerView]:
    """The layers that are shown: all of them, or those furthest past a budget where a screen does not hold all."""
    if len(receipt.layers) <= CELLS_UP_TO:
        return list(receipt.layers)
    worst = sorted(receipt.layers, key=lambda layer: -_reach(layer, receipt))[:CELLS_UP_TO]
    return sorted(worst, key=lambda layer: layer.layer)


def _reach(layer: LayerView, receipt: ReceiptView) -> float:
    """How far past a budget a layer reaches; a protected layer counts before any other."""
    values = ((layer.channel(channel.key), receipt.probe.policy.budget(channel.budget)) for channel in GATED)
    found = [multiple(value.estimate, budget) or 0.0 for value, budget in values if value is not None]
    return max(found, default=0.0) + (1e9 if layer.protected else 0.0)


def _cell(layer: LayerView, channel: Channel, budget: float | None, gates: Gates) -> Cell:
    value = layer.channel(channel.key) or no_interval()
    gate = gates.get((layer.layer, channel.budget))
    result = gate.result if gate and layer.protected else "not-gated"
    bound, reach = value.simultaneous_low, value.estimate if value.high is None else value.high
    ceiling = channel.ceiling(layer.experts, layer.top_k)
    return Cell(
        times=times(value.estimate, budget),
        estimate=f"{number(value.estimate)}{copies(value)}",
        interval=_span(value),
        bound=number(bound) if bound is not None else "",
        result=result,
        symbol=SYMBOLS[result] if result != "not-gated" else "",
        heat=_measured_heat(reach, ceiling) if budget is None else _heat(reach, budget),
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


def _measured_heat(reach: float | None, ceiling: float) -> int:
    """Faint at 0, strong at the largest value that the channel can take."""
    share = 0.0 if reach is None or ceiling <= 0 else max(0.0, min(1.0, reach / ceiling))
    return round(6 + 44 * share)
