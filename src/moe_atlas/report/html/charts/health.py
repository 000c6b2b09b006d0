"""The charts of an audit, each with the sentence that says what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from moe_atlas.report.html.charts import svg
from moe_atlas.report.html.charts.scales import bounds, layer_axis, legend, span
from moe_atlas.text import number
from moe_atlas.views.measured import LayerView

Layers = Sequence[LayerView]
SIDES = (("base", svg.BASE, "o", "none", -0.12), ("tuned", svg.TUNED, "s", svg.TUNED, 0.12))
SHADES = 41  # of a colour scale
CROSSES = 2000  # beyond which they hide the picture and swell the page
WARM, COLD = (0.84, 0.37, 0.0), (0.0, 0.45, 0.70)  # orange and blue of the Okabe-Ito palette


def _health(layer: LayerView, side: str, key: str) -> tuple[float, float, float] | None:
    found = layer.side(side)
    return bounds(found.interval(key) if found else None)


def by_layer(layers: Layers, key: str, label: str, least: float | None) -> Markup | None:
    """A health figure of both checkpoints by layer, with intervals.

    Args:
        layers: the routed layers.
        key: the figure's key.
        label: the figure in words, with its unit.
        least: the budget of its change, which the axis spans at least; None for none.
    """
    sides = [side for side in SIDES if any(_health(layer, side[0], key) for layer in layers)]
    if not sides:
        return None
    with svg.styled():
        figure, (plot,) = svg.axes(2.5)
        for side, colour, marker, face, shift in sides:
            found = [(layer.layer + shift, _health(layer, side, key)) for layer in layers]
            x, values = zip(*((at, value) for at, value in found if value), strict=True)
            estimate, low, high = np.array(values).T
            errors = np.clip([estimate - low, high - estimate], 0.0, None)
            plot.errorbar(
                x, estimate, errors, fmt=marker, color=colour, markerfacecolor=face, markersize=4,
                linewidth=1, label=side,
            )  # fmt: skip
        layer_axis(plot, layers)
        lowest, highest = plot.dataLim.intervaly
        plot.set_ylim(*span(lowest, highest, None, least or 0.0))
        plot.set_ylabel(label)
        legend(plot, 2)
        said = (
            f"{label} by layer for {' and '.join(side[0] for side in sides)}, with intervals; numbers below."
        )
        return svg.inline(figure, key.replace("_", "-"), f"{label} by layer", said)


QUANTILES = ("set_margin_p01", "set_margin_p10", "set_margin_p50")


def margins(layers: Layers, floor: Mapping[int, float]) -> Markup | None:
    """Set margins: the 1 %, 10 % and 50 % quantiles of both checkpoints, and the noise band 2 delta."""
    sides = [side for side in SIDES if all(_pooled(layer, side[0])[1] for layer in layers)]
    if not sides:
        return None
    with svg.styled():
        figure, (plot,) = svg.axes(2.7)
        for side, colour, marker, face, shift in sides:
            for layer in layers:
                low, decile, middle = (_positive(value) for value in _pooled(layer, side))
                x = layer.layer + shift
                plot.plot([x, x], [low, middle], color=colour, linewidth=1)
                plot.plot([x], [middle], marker, color=colour, markerfacecolor=face, markersize=4)
                plot.plot([x], [decile], "_", color=colour, markersize=6)
            plot.plot([], [], marker, color=colour, markerfacecolor=face, markersize=4, label=side)
        if floor:
            numbers = [
                layer for layer in sorted(floor) if floor[layer] > 0
            ]  # no band has no place on a log axis
            band = [2 * floor[layer] for layer in numbers]
            plot.plot(
                numbers, band, color=svg.FAIL, linestyle=":", marker=".", markersize=3, label="noise band 2δ"
            )
        plot.set_yscale("log")
        plot.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:.0e}" if value < 1e-3 else f"{value:g}")
        )
        plot.yaxis.set_minor_formatter(NullFormatter())
        layer_axis(plot, layers)
        plot.set_ylabel("set margin")
        legend(plot)
        said = (
            "Set margins by layer: a line from the 1 percent quantile to the median, a dash at the decile. "
            "Set changes below the noise band are no evidence of a rewrite."
        )
        return svg.inline(figure, "margins", "Set margin by layer", said)


def _pooled(layer: LayerView, side: str) -> list[float | None]:
    found = layer.side(side)
    return [found.pooled(key) if found else None for key in QUANTILES]


def _positive(value: float | None) -> float:
    return float("nan") if value is None else max(float(value), 1e-12)


def shares(layers: Layers) -> Markup | None:
    """Change of every expert's share of the tokens: layers down, experts across, as a picture of signed colour."""
    rows = [(layer, _share_change(layer)) for layer in layers]
    rows = [(layer, change) for layer, change in rows if change is not None]
    if not rows:
        return None
    width = max(len(change) for _, change in rows)
    change_LE = np.full((len(rows), width), np.nan)
    for place, (_, change) in enumerate(rows):
        change_LE[place, : len(change)] = change
    largest = float(np.nanmax(np.abs(change_LE))) or 1.0
    with svg.styled():
        figure, (plot,) = svg.axes(1.3 + 0.2 * max(6, min(len(rows), 40)))
        plot.imshow(_signed_colours(change_LE / largest), aspect="auto", interpolation="nearest")
        plot.grid(visible=False)
        marks = _every(len(rows))
        plot.set_yticks(marks, [f"{rows[m][0].layer}{'*' if rows[m][0].protected else ''}" for m in marks])
        plot.set_ylabel("layer (* protected)")
        plot.set_xlabel("expert")
        dead = _dead_marks(plot, [layer for layer, _ in rows])
        _colour_scale(plot, largest)
        said = (
            f"Change of the share of tokens each expert sees, tuned minus base; the largest change is "
            f"{number(100 * largest)} points. Orange gains, blue loses, a cross marks an expert that saw no token "
            f"afterwards ({dead} of them)."
        )
        return svg.inline(figure, "shares", "Expert share, tuned minus base", said)


def _colour_scale(plot: Axes, largest: float) -> None:
    """What a colour stands for, in points of the share of tokens."""
    scale = plot.inset_axes((0.0, 1.04, 1.0, 0.04))
    unit = np.linspace(-1.0, 1.0, SHADES)
    scale.imshow(_signed_colours(unit[None, :]), aspect="auto", extent=(-1.0, 1.0, 0.0, 1.0))
    ticks = (-1.0, -0.5, 0.0, 0.5, 1.0)
    scale.set_xticks(ticks, [f"{100 * largest * tick:+.2g}" if tick else "0" for tick in ticks], fontsize=9)
    scale.xaxis.tick_top()
    scale.set_yticks([])
    scale.grid(visible=False)
    scale.set_title("change of an expert's share of tokens, points", fontsize=9, pad=16)


def _share_change(layer: LayerView) -> Any:
    base, tuned = layer.shares
    some = min(len(base), len(tuned))
    return np.array(tuned[:some]) - np.array(base[:some]) if some else None


def _signed_colours(unit_LE: Any) -> Any:
    """RGBA: hue by sign, opacity by size, so that the picture sits on a light page and on a dark one."""
    colours = np.zeros((*unit_LE.shape, 4))
    colours[..., :3] = np.where((unit_LE > 0)[..., None], WARM, COLD)
    colours[..., 3] = np.nan_to_num(np.abs(unit_LE)) ** 0.7
    return colours


def _dead_marks(plot: Axes, layers: Iterable[LayerView]) -> int:
    """A cross for each expert that saw no token; returns how many there are, of which too many are not drawn."""
    dead = [
        (expert, place)
        for place, layer in enumerate(layers)
        for expert, share in enumerate(layer.shares[1])
        if share == 0
    ]
    if 0 < len(dead) <= CROSSES:
        x, y = zip(*dead, strict=True)
        plot.plot(x, y, "x", color=svg.INK, markersize=3, markeredgewidth=0.7)
    return len(dead)


def _every(count: int) -> list[int]:
    return list(range(0, count, max(1, -(-count // 16))))
