"""Ladders as a table: a row for each channel's worst protected layer and for each base domain, at every rung."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from moe_atlas.base_alone.ladder import Rung
from moe_atlas.calibration.from_base import Draft
from moe_atlas.channels import BUDGETS
from moe_atlas.text import shown

NLL = "nll_increase"
NOT_A_TUNE = (
    "for seeing which quantity answers to which object, and where the budgets lie beside damage; set no budget by it: "
    "noise is no tune, and it flatters content, because a tune that moves content as far loses more"
)


@dataclass(frozen=True)
class Row:
    """One quantity at one rung; the fields are the columns of the CSV file.

    Attributes:
        object: the object that got noise.
        dose: standard deviation of the noise as a share of each tensor's RMS.
        quantity: name of the channel's budget, or ``nll_increase``.
        layer: the protected layer with the largest estimate; None for a domain.
        domain: the base domain; empty for a channel.
        estimate: the estimate; None if the base does not define the channel.
        low: lower end of the interval.
        high: upper end of the interval.
        limit: the drafted budget, or the margin; None for a channel without a budget.
    """

    object: str
    dose: float
    quantity: str
    layer: int | None
    domain: str
    estimate: float | None
    low: float | None
    high: float | None
    limit: float | None

    @property
    def over(self) -> bool:
        """Whether the whole interval lies above the limit."""
        return self.low is not None and self.limit is not None and self.low > self.limit


def table(rungs: Iterable[Rung], protected: Sequence[int], draft: Draft) -> list[Row]:
    """Return the rows of all rungs, in the order of the ladders.

    Args:
        rungs: the measured rungs.
        protected: the protected layers.
        draft: the drafted budgets and the margin.
    """
    return [row for rung in rungs for row in (*_channels(rung, protected, draft), *_domains(rung, draft))]


def _channels(rung: Rung, protected: Sequence[int], draft: Draft) -> Iterator[Row]:
    layers = [layer for layer in rung.measured["layers"] if layer["layer"] in protected]
    for name, budget in draft.budgets.items():
        key = BUDGETS[name].key
        known = [layer for layer in layers if layer[key]["estimate"] is not None]
        worst = max(known, key=lambda layer: float(layer[key]["estimate"]), default=None)
        bounds = _bounds(worst[key] if worst else {})
        yield Row(rung.object, rung.dose, name, worst and worst["layer"], "", *bounds, limit=budget.value)


def _domains(rung: Rung, draft: Draft) -> Iterator[Row]:
    for domain in rung.measured["domains"]:
        if domain["role"] == "base":
            bounds = _bounds(domain[NLL])
            yield Row(rung.object, rung.dose, NLL, None, domain["name"], *bounds, limit=draft.margin)


def _bounds(found: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    return found.get("estimate"), found.get("low"), found.get("high")


def csv_text(rows: Iterable[Row]) -> str:
    """Return the rows as CSV with a header; a missing number is an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return stream.getvalue()


def summary(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each object: from which dose on it is over the margin, and over a budget."""
    return [
        f"{name}: {_first([row for row in rows if row.object == name])}"
        for name in dict.fromkeys(row.object for row in rows)
    ]


def _first(rows: Sequence[Row]) -> str:
    last = max(row.dose for row in rows)
    damaged = [row for row in rows if row.quantity == NLL and row.over]
    moved = [row for row in rows if row.quantity != NLL and row.over]
    damage = (
        f"beyond your margin {_from(damaged, 'domain')}"
        if damaged
        else f"not certainly damaged up to dose {last:g}"
    )
    budget = f"over a budget {_from(moved, 'quantity')}" if moved else "never over a budget"
    return f"{damage}; {budget}"


def _from(over: Sequence[Row], named: str) -> str:
    dose = min(row.dose for row in over)
    names = ", ".join(shown(str(getattr(row, named))) for row in over if row.dose == dose)
    return f"from dose {dose:g} ({names})"
