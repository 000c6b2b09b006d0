"""What charts share: bounds of an interval, limits of an axis, legends, the colours of a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moe_atlas.report.html.charts import svg
from moe_atlas.views.measured import Interval, LayerView

TONES = {
    "pass": (svg.PASS, "o"),
    "fail": (svg.FAIL, "X"),
    "undetermined": (svg.OPEN, "^"),
    "not-applicable": (svg.MUTED, "."),
    "not-gated": (svg.MEASURED, "o"),
}
"""Colour and marker of each result; a colour never speaks alone."""
ROOM = 1.25  # an axis reaches this far beyond a limit, so that a value near it is seen to be near it


def bounds(value: Interval | None) -> tuple[float, float, float] | None:
    """Estimate, low and high; None unless all three are there."""
    if value is None or value.estimate is None or value.low is None or value.high is None:
        return None
    return value.estimate, value.low, value.high


def legend(plot: Axes, columns: int = 3) -> None:
    """Put the legend above the axes, where it covers no point."""
    plot.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, fontsize=10)


def span(lowest: float, highest: float, limit: float | None, least: float) -> tuple[float, float]:
    """Return the limits of an axis: all values, the limit with room behind it, and never less than `least` apart.

    Args:
        lowest: the smallest value shown.
        highest: the largest value shown.
        limit: a budget or margin that the axis has to show; None for none.
        least: the smallest span, so that noise does not fill the picture.
    """
    top = max(highest, 0.0 if limit is None else ROOM * limit)
    bottom = min(lowest, 0.0 if limit is not None else lowest)
    missing = max(0.0, least - (top - bottom))
    pad = 0.04 * (max(top - bottom, least) or 1.0)
    return bottom - missing / 2 - pad, top + missing / 2 + pad


def verdict_colour(low: float, high: float, limit: float | None) -> Any:
    """The colour of an interval held below a limit; without a limit, the colour of a measurement."""
    if limit is None:
        return svg.MEASURED
    return svg.FAIL if low > limit else (svg.PASS if high < limit else svg.OPEN)


def layer_axis(plot: Axes, layers: Sequence[LayerView]) -> None:
    """Put layer numbers below, and shade the protected layers, which alone decide."""
    plot.set_xlabel("layer (shaded: protected)")
    plot.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    for first, last in runs([layer.layer for layer in layers if layer.protected]):
        plot.axvspan(first - 0.5, last + 0.5, color=svg.LINE, alpha=0.35, linewidth=0)
    plot.set_xlim(layers[0].layer - 0.6, layers[-1].layer + 0.6)


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending numbers as runs without a gap: first and last of each."""
    found: list[tuple[int, int]] = []
    for one in numbers:
        if found and one == found[-1][1] + 1:
            found[-1] = (found[-1][0], one)
        else:
            found.append((one, one))
    return found
