"""The chart of an explanation: the distribution of the documents' damage in each domain."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from moe_atlas.explanation.documents import DomainDamage
from moe_atlas.report.html.charts import svg
from moe_atlas.text import number, shown

BINS = 40


def distribution(domains: list[DomainDamage], unit: str) -> Markup | None:
    """Return histograms of the documents' changes of loss, one below the other; None if no change is finite."""
    drawn = [domain for domain in domains if domain.quantiles]
    if not drawn:
        return None
    finite = [[d.increase for d in domain.documents if np.isfinite(d.increase)] for domain in drawn]
    edges = _edges(min(map(min, finite)), max(map(max, finite)))
    with svg.styled():
        figure, plots = svg.axes(0.7 + 1.1 * len(drawn), rows=len(drawn))
        for plot, domain, values in zip(plots, drawn, finite, strict=True):
            plot.hist(values, bins=edges, color=svg.MEASURED)
            plot.axvline(0.0, color=svg.MUTED, linewidth=1)
            plot.axvline(domain.quantiles[2], color=svg.INK, linewidth=1.2, linestyle="--")
            plot.set_title(f"{shown(domain.name, 24)} ({domain.role})", loc="left", fontsize=11)
            plot.set_ylabel("documents")
        plots[-1].set_xlabel(f"change of NLL, {unit} (dashed: middle document)")
        said = "; ".join(
            f"{domain.name} from {number(domain.quantiles[0])} over {number(domain.quantiles[2])} in the middle "
            f"to {number(domain.quantiles[-1])}"
            for domain in drawn
        )
        return svg.inline(
            figure, "damage-by-document", "Change of NLL by document", f"Change of NLL: {said}."
        )


def _edges(low: float, high: float) -> list[float]:
    """Return the edges of the bins, which hold 0 and do not blow a spread of nothing up."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = -0.01, 0.01
    return [float(edge) for edge in np.linspace(low, high, BINS + 1)]
