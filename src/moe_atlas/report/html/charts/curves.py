"""Every channel over the layers as a curve, for models of more layers than a wall of cells shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moe_atlas.channels import GATED, Channel
from moe_atlas.report.html.charts import svg
from moe_atlas.report.html.charts.scales import TONES, layer_axis, span
from moe_atlas.text import number
from moe_atlas.views.measured import LayerView
from moe_atlas.views.receipt import ReceiptView

SMALLEST = 0.05  # of the largest value a channel can take: the least span of an axis without a budget
TALL = 1.9  # inches


class Point(NamedTuple):
    """One channel at one layer.

    Attributes:
        layer: the layer's number.
        estimate: what was measured.
        low: the lower bound that a FAIL rests on where the layer has it, else the interval's lower end.
        high: the upper bound that a pass rests on where the layer has it, else the interval's upper end.
        result: what its gate came to.
    """

    layer: int
    estimate: float
    low: float
    high: float
    result: str


class Curve(NamedTuple):
    """One channel, drawn.

    Attributes:
        caption: the channel and its budget.
        drawing: the curve.
    """

    caption: str
    drawing: Markup


def curves(receipt: ReceiptView) -> list[Curve]:
    """Return every gated channel that was measured, each with its budget and the band that decides."""
    found = [(channel, points(receipt, channel)) for channel in GATED]
    return [_curve(receipt, channel, known) for channel, known in found if known]


def _curve(receipt: ReceiptView, channel: Channel, known: Sequence[Point]) -> Curve:
    budget = receipt.probe.policy.budget(channel.budget)
    held = "no budget registered" if budget is None else f"budget {number(budget)}"
    with svg.styled():
        figure, (plot,) = svg.axes(TALL)
        _draw(plot, channel, known, receipt)
        layer_axis(plot, receipt.layers)
        name = f"curve-{channel.key.replace('_', '-')}"
        drawing = svg.inline(
            figure, name, f"{channel.heading} by layer", f"{_said(receipt, channel, known)}."
        )
    return Curve(f"{channel.heading}, {held}", drawing)


def points(receipt: ReceiptView, channel: Channel) -> list[Point]:
    """Return a channel over the layers that measure it, with the bounds that decide there."""
    lines = receipt.predicates["protected_atlas_rewrite"].evidence
    results = {line.layer: line.result for line in lines if line.gate == channel.budget}
    found = []
    for layer in receipt.layers:
        value = layer.channel(channel.key)
        if value is None or value.estimate is None:
            continue
        low = value.low if value.simultaneous_low is None else value.simultaneous_low
        high = value.pass_high if value.has_pass_bound else value.high
        estimate = value.estimate
        result = results.get(layer.layer, "not-gated") if layer.protected else "not-gated"
        found.append(
            Point(layer.layer, estimate, low if low is not None else estimate, high or estimate, result)
        )
    return found


def _draw(plot: Axes, channel: Channel, known: Sequence[Point], receipt: ReceiptView) -> None:
    budget = receipt.probe.policy.budget(channel.budget)
    layers = [point.layer for point in known]
    lows, highs = [min(p.low, p.estimate) for p in known], [max(p.high, p.estimate) for p in known]
    plot.fill_between(layers, lows, highs, color=svg.MEASURED, alpha=0.25, linewidth=0)
    plot.plot(layers, [point.estimate for point in known], color=svg.MEASURED, linewidth=1)
    for result in dict.fromkeys(point.result for point in known):
        colour, marker = TONES[result]
        some = [point for point in known if point.result == result]
        size = 2.5 if result in ("pass", "not-gated") else 4
        plot.plot([p.layer for p in some], [p.estimate for p in some], marker, color=colour, markersize=size)
    if budget is not None:
        plot.axhline(budget, color=svg.FAIL, linewidth=1.1, linestyle="--")
    plot.set_ylim(*span(min(lows), max(highs), budget, _least(channel, budget, receipt.layers[0])))
    plot.yaxis.set_major_locator(MaxNLocator(4))


def _least(channel: Channel, budget: float | None, layer: LayerView) -> float:
    """The least span of an axis: the budget, or a small share of what the channel can reach."""
    return budget or SMALLEST * channel.ceiling(layer.experts, layer.top_k)


def _said(receipt: ReceiptView, channel: Channel, known: Sequence[Point]) -> str:
    worst = max(known, key=lambda point: point.estimate)
    failed = sum(point.result == "fail" for point in known)
    budget = receipt.probe.policy.budget(channel.budget)
    held = f"budget {number(budget)}, {failed} layers over it" if budget is not None else "no budget"
    return f"{channel.heading} at most {number(worst.estimate)} in layer {worst.layer}, {held}"
