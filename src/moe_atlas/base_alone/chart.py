"""The chart of ladders: a panel for the loss and for each channel, a curve for each object, the limits as lines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from moe_atlas.auditing.copies.noise import OBJECTS
from moe_atlas.base_alone.table import NLL, Row
from moe_atlas.channels import BUDGETS, DISTANCES

COLUMNS = 2
TOP = 3.0  # margins that the panel of the loss shows: the last rung of a ladder may lie far beyond
STYLES = dict(
    zip(
        OBJECTS,
        (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#333333", "X")),
        strict=True,
    )
)
"""Colour and marker of each object, after Okabe and Ito; a colour never speaks alone."""
DRAWN: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "atlas",
    "font.size": 9,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "legend.frameon": False,
}
LIMIT = "#b00020"
NOTE = """\
Dose: standard deviation of Gaussian noise as a share of each tensor's root mean square. Dashed: the drafted budget,
or your margin. Bars: intervals. Channels at their worst protected layer. Where noise moves nothing, there is no curve.
Noise is no tune, and it flatters content: a tune that moves content as far loses more."""


def chart(rows: Sequence[Row]) -> bytes:
    """Return the chart as SVG; equal rows give equal bytes."""
    stream = io.BytesIO()
    with rc_context(DRAWN):
        figure(rows).savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def figure(rows: Sequence[Row]) -> Figure:
    """Draw the chart: the loss first, then the channels in the order of a policy."""
    quantities = sorted({row.quantity for row in rows}, key=[NLL, *BUDGETS].index)
    tall = -(-len(quantities) // COLUMNS)
    made = Figure(figsize=(9.0, 2.3 * tall + 1.2), layout="constrained")
    plots = made.subplots(tall, COLUMNS, sharex=True, squeeze=False).ravel().tolist()
    for plot, quantity in zip(plots, quantities, strict=False):
        _panel(plot, quantity, [row for row in rows if row.quantity == quantity])
    for plot in plots[len(quantities) :]:
        plot.remove()
    _axis_of_doses(plots[: len(quantities)], sorted({row.dose for row in rows}))
    handles = [Line2D([], [], color=c, marker=m, label=f"noise on {o}") for o, (c, m) in STYLES.items()]
    made.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    made.supxlabel(NOTE, fontsize=8, x=0.01, ha="left")
    return made


def _panel(plot: Axes, quantity: str, rows: Sequence[Row]) -> None:
    logarithmic = quantity != NLL and BUDGETS[quantity] in DISTANCES
    for name, found in groupby(rows, key=lambda row: row.object):
        _curve(plot, name, _worst(list(found)), logarithmic=logarithmic)
    limit = rows[0].limit
    if limit is not None:
        plot.axhline(limit, color=LIMIT, linestyle="--", linewidth=1.2)
    if logarithmic:
        plot.set_yscale("log", nonpositive="mask")
        plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        plot.yaxis.set_minor_formatter(NullFormatter())
    if quantity == NLL:
        assert limit is not None, "a margin is always given"
        plot.set_ylim(-limit, TOP * limit)
    plot.set_title(_title(quantity, limit), fontsize=9, loc="left")


def _title(quantity: str, limit: float | None) -> str:
    if quantity == NLL:
        return f"rise of NLL, worst base domain, nats per token (margin {limit:g})"
    held = "no budget" if limit is None else f"budget {limit:g}"
    return f"{BUDGETS[quantity].heading} ({held})"


def _worst(rows: Sequence[Row]) -> list[Row]:
    """Return one measured row for each dose: of several domains, the one that lost most."""
    known = [row for row in rows if row.estimate is not None]
    return [
        max(found, key=lambda row: row.estimate or 0.0) for _, found in groupby(known, lambda row: row.dose)
    ]


def _curve(plot: Axes, name: str, rows: Sequence[Row], *, logarithmic: bool) -> None:
    """Draw one object's curve; a logarithmic axis has no place for what did not move."""
    colour, marker = STYLES[name]
    shown = [row for row in rows if not logarithmic or (row.estimate or 0.0) > 0.0]
    estimates = [float(row.estimate or 0.0) for row in shown]
    below = [
        max(0.0, e - row.low) if row.low is not None else 0.0 for e, row in zip(estimates, shown, strict=True)
    ]
    above = [
        max(0.0, row.high - e) if row.high is not None else 0.0
        for e, row in zip(estimates, shown, strict=True)
    ]
    plot.errorbar(
        [row.dose for row in shown], estimates, (below, above),
        color=colour, marker=marker, markersize=4, linewidth=1.2, elinewidth=0.8,
    )  # fmt: skip


def _axis_of_doses(plots: Sequence[Axes], doses: Sequence[float]) -> None:
    for plot in plots:
        plot.set_xscale("log")
        plot.set_xticks(doses, [f"{dose:g}" for dose in doses])
        plot.xaxis.set_minor_locator(NullLocator())
    for plot in plots[-COLUMNS:]:
        plot.tick_params(labelbottom=True)
        plot.set_xlabel("dose")
