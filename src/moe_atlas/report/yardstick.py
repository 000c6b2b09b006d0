"""Every drift and every change of loss as a multiple of what a 4-bit copy of the base does at the same place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moe_atlas.channels import BUDGETS, DISTANCES
from moe_atlas.text import number
from moe_atlas.views.judged import EvidenceLine
from moe_atlas.views.measured import Interval, Intervals
from moe_atlas.views.yardstick import Yardstick

Found = Mapping[str, Any]
TIMES = "times_copy"
"""Where `with_multiples` puts a multiple: beside the estimate that it belongs to. No receipt stores it."""
OUTPUTS = ("nll_increase", "kl")
"""The changes of a domain's output, which are gates of the same name."""


def with_multiples(receipt: Found) -> dict[str, Any]:
    """Return a receipt to show, in which intervals of layers and domains and lines of evidence carry their multiple.

    Nothing is added without a yardstick, and where the copy did not certainly move the quantity.
    """
    if not receipt.get("yardstick") or receipt["kind"] == "baseline":
        return dict(receipt)
    moved = dict(_moved(Yardstick(receipt["yardstick"], "yardstick")))
    layers = [layer | {"pair": _marked(layer["pair"], layer["layer"], moved)} for layer in receipt["layers"]]
    domains = [_marked(row, row["name"], moved) for row in receipt["domains"]]
    predicates = {
        name: found | {"evidence": [_line(line, moved) for line in found["evidence"]]}
        for name, found in receipt["predicates"].items()
    }
    return {**receipt, "layers": layers, "domains": domains, "predicates": predicates}


def against_copy(found: Interval | EvidenceLine) -> str:
    """Return the multiple behind an estimate in a sentence, or nothing: ``, 1.3 × a 4-bit copy``."""
    return "" if found.times_copy is None else f", {_rounded(found.times_copy)} × a 4-bit copy"


def copies(found: Interval | EvidenceLine | None) -> str:
    """Return the multiple behind an estimate in a cell of a table, or nothing: `` 1.3×``."""
    return "" if found is None or found.times_copy is None else f" {_rounded(found.times_copy)}×"


def _rounded(multiple: float) -> str:
    return "<0.01" if 0.0 < multiple < 0.01 else number(multiple, 2)


def _moved(yardstick: Yardstick) -> Iterator[tuple[tuple[Any, str], float]]:
    """Yield what the copy certainly moved, by (layer or domain, key)."""
    places: list[tuple[Any, Intervals, tuple[str, ...]]] = [
        (row.layer, row, tuple(channel.key for channel in DISTANCES)) for row in yardstick.layers
    ]
    places += [(row.name, row, OUTPUTS) for row in yardstick.domains]
    for place, row, keys in places:
        for key in keys:
            found = row.interval(key)
            if found and found.estimate is not None and (found.low or 0.0) > 0.0:
                yield (place, key), found.estimate


def _marked(intervals: Found, place: Any, moved: Mapping[tuple[Any, str], float]) -> dict[str, Any]:
    return {
        key: found | {TIMES: found["estimate"] / moved[place, key]}
        if (place, key) in moved and found and found.get("estimate") is not None
        else found
        for key, found in intervals.items()
    }


def _line(line: Found, moved: Mapping[tuple[Any, str], float]) -> dict[str, Any]:
    gate = line["gate"]
    key = BUDGETS[gate].key if gate in BUDGETS else gate
    place = line.get("domain") if gate in OUTPUTS else line.get("layer")
    known = (place, key) in moved and line["estimate"] is not None
    return {**line, **({TIMES: line["estimate"] / moved[place, key]} if known else {})}
