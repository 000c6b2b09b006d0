"""The charts of damage: the change of loss of every domain, and what each document of it lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moe_atlas.report.html.charts import svg
from moe_atlas.report.html.charts.documents import Documents
from moe_atlas.report.html.charts.scales import bounds, legend, verdict_colour
from moe_atlas.text import number, shown
from moe_atlas.views.measured import DomainRow

PANELS = 6  # domains whose documents are drawn
BINS = 30
NAMED = 2  # documents of a domain
WORSE = "(right = worse)"


def domains(rows: Sequence[DomainRow], limit: float | None, unit: str) -> Markup | None:
    """Paired change of NLL of every domain with its interval, and the registered margin."""
    found = [(row, known) for row in rows if (known := bounds(row.nll_increase))]
    if not found:
        return None
    with svg.styled():
        figure, (plot,) = svg.axes(1.15 + 0.36 * len(found))
        for place, (row, known) in enumerate(found):
            _interval(plot, place, known, limit if row.role == "base" else None)
        plot.axvline(0.0, color=svg.MUTED, linewidth=1)
        _margin(plot, limit, "margin")
        plot.set_yticks(range(len(found)), [f"{shown(row.name, 24)} ({row.role})" for row, _ in found])
        plot.set_ylim(len(found) - 0.5, -0.5)
        plot.set_xlabel(f"change of NLL, {unit} {WORSE}")
        plot.grid(axis="y", visible=False)
        said = "; ".join(
            f"{row.name} {number(e)} from {number(lo)} to {number(hi)}" for row, (e, lo, hi) in found
        )
        return svg.inline(figure, "damage", "Change of NLL by domain", f"Paired change of NLL: {said}.")


def _interval(plot: Axes, place: int, known: tuple[float, float, float], limit: float | None) -> None:
    estimate, low, high = known
    colour = verdict_colour(low, high, limit)
    plot.plot([low, high], [place, place], color=colour, linewidth=2)
    plot.plot([estimate], [place], "o", color=colour, markersize=5)


def _margin(plot: Axes, limit: float | None, name: str) -> None:
    if limit is not None:
        label = f"{name} {number(limit)}"
        plot.axvline(limit, color=svg.FAIL, linewidth=1.2, linestyle="--", label=label)
        legend(plot, 2)


def documents(found: Sequence[Documents], limit: float | None, unit: str) -> Markup | None:
    """How the change of loss spreads over the documents of each domain, the worst named.

    Args:
        found: the domains, in the receipt's order.
        limit: the registered limit of a single document of a base domain; None for none.
        unit: the unit of a loss.
    """
    some = _worst(found)
    if not some:
        return None
    edges = _edges(some, limit)
    with svg.styled():
        figure, plots = svg.axes(0.85 + 0.95 * len(some), rows=len(some))
        for plot, one in zip(plots, some, strict=True):
            _panel(plot, one, edges, limit)
        plots[-1].set_xlabel(f"change of NLL of a document, {unit} {WORSE}")
        if limit is not None:
            line = plots[0].plot([], [], color=svg.FAIL, linewidth=1.2, linestyle="--")
            label = f"limit of one document of a base domain, {number(limit)}"
            figure.legend(handles=line, labels=[label], loc="outside upper center", fontsize=10)
        said = "; ".join(f"{one.domain.name} {worst_words(one)}" for one in some)
        return svg.inline(figure, "documents", "Change of NLL by document", f"{said}.")


def _worst(found: Sequence[Documents]) -> list[Documents]:
    """The domains that are drawn, in the receipt's order: those whose worst document lost most."""
    some = [one for one in found if len(one.increase_C)]
    worst = sorted(some, key=lambda one: -float(one.increase_C.max()))[:PANELS]
    return [one for one in some if any(one is other for other in worst)]


def _edges(found: Sequence[Documents], limit: float | None) -> Any:
    """Bins from the smallest to the largest change of any document; they reach the limit and zero."""
    every = np.concatenate([one.increase_C for one in found])
    lowest, highest = min(0.0, float(every.min())), max(float(every.max()), limit or 0.0)
    return np.linspace(lowest, highest if highest > lowest else lowest + 1.0, BINS + 1)


def _panel(plot: Axes, one: Documents, edges: Any, limit: float | None) -> None:
    plot.hist(one.increase_C, bins=edges, color=svg.MEASURED, alpha=0.55, linewidth=0)
    worst = [increase for _, increase in one.worst(NAMED)]
    plot.plot(worst, [0.0] * len(worst), "v", color=svg.FAIL, markersize=6, clip_on=False, zorder=5)
    plot.axvline(0.0, color=svg.MUTED, linewidth=1)
    if limit is not None and one.domain.role == "base":
        plot.axvline(limit, color=svg.FAIL, linewidth=1.2, linestyle="--")
    plot.set_title(
        f"{shown(one.domain.name, 24)} ({one.domain.role}), {worst_words(one)}", fontsize=9, loc="left", pad=3
    )
    plot.set_ylabel("documents", fontsize=9)
    plot.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    plot.grid(axis="x", visible=False)


def worst_words(one: Documents) -> str:
    """The documents that lost most, by number."""
    named = [f"{document} ({increase:+.3g})" for document, increase in one.worst(NAMED)]
    broken = [f"{one.broken} not finite"] if one.broken else []
    return f"worst documents: {', '.join([*named, *broken])}"
