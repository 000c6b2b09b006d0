"""The damage gate in simulation: the product's own interval, tail guard, document floor and predicate.

Shape legend: W windows, C documents, R replications.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.statistics.bootstrap import domain_means
from moe_atlas.statistics.clopper_pearson import clopper_pearson_upper
from moe_atlas.statistics.design import Design, make_design
from moe_atlas.statistics.passing import passing_bound
from moe_atlas.statistics.resampled import Interval, Resampled, interval
from moe_atlas.verdict.damage import UNDAMAGED, damage_gates, damage_outcome
from moe_atlas.verdict.gates.gate import PASS_FLOOR
from moe_atlas.views.receipt import ReceiptView
from scripts.coverage.draws import SHAPES, Cell, document_of_windows, increases

F64 = NDArray[np.float64]

MARGIN = 0.02  # nats per token
# A guard that fits the margin: no tenth of the documents hides a mean increase of the margin behind it.
FITTED = {"nll": MARGIN, "document_nll": 5 * MARGIN, "document_share": 0.12}
LOOSE = {"nll": MARGIN, "document_nll": 25 * MARGIN, "document_share": 0.12}
CONFIDENCE = 0.95
DOCUMENTS = (12, 25, PASS_FLOOR, 50, 100, 200)  # PASS_FLOOR: the fewest on which the gate passes at all
CORRELATIONS = (0.0, 0.2, 0.5)
BATCH = 250  # replications that share documents' sizes and resamples


@dataclass(frozen=True)
class Rates:
    """What happened in one cell, as shares of the replications.

    Attributes:
        cell: which.
        covered: the two-sided 95 % interval holds the true mean.
        bound_missed: the interval's upper bound lies below the true mean (nominal 2.5 %).
        false_pass: the whole gate says undamaged although the mean increase equals the margin.
        false_pass_loose: the same with a per-document limit far above what the margin asks for.
        false_fail: the gate says damaged although the mean increase equals the margin (nominal 2.5 %).
        healthy_pass: the whole gate says undamaged where nothing was damaged.
    """

    cell: Cell
    covered: float
    bound_missed: float
    false_pass: float
    false_pass_loose: float
    false_fail: float
    healthy_pass: float


def grid() -> list[Cell]:
    """All 144 cells."""
    return [Cell(*made) for made in product(SHAPES, (False, True), DOCUMENTS, CORRELATIONS)]


def simulate(cell: Cell, reps: int, resamples: int, seed: int) -> Rates:
    """Run one cell: a mean increase of exactly the margin, and none at all."""
    planted = [row for part in _batches(cell, MARGIN, reps, resamples, seed) for row in part]
    healthy = [row for part in _batches(cell, 0.0, reps, resamples, seed + 1) for row in part]
    lows, highs = _bounds(planted)
    return Rates(
        cell,
        covered=float(np.mean((lows <= MARGIN) & (highs >= MARGIN))),
        bound_missed=float(np.mean(highs < MARGIN)),
        false_pass=_share(planted, FITTED, UNDAMAGED),
        false_pass_loose=_share(planted, LOOSE, UNDAMAGED),
        false_fail=_share(planted, FITTED, "damaged"),
        healthy_pass=_share(healthy, FITTED, UNDAMAGED),
    )


@dataclass(frozen=True)
class Replication:
    """One simulated domain: its interval, and each document's mean increase."""

    increase: Interval
    means_C: F64


def _batches(cell: Cell, mean: float, reps: int, resamples: int, seed: int) -> Iterator[list[Replication]]:
    for number, begin in enumerate(range(0, reps, BATCH)):
        rng = np.random.default_rng([seed, number, cell.documents, int(100 * cell.correlation)])
        document_W = document_of_windows(cell, rng)
        values_WR = increases(cell, document_W, mean, min(BATCH, reps - begin), rng)
        design = make_design(np.zeros_like(document_W), document_W, seed + number, resamples)
        yield replications(values_WR, design)


def replications(values_WR: F64, design: Design) -> list[Replication]:
    """The product's interval of every column, beside the documents' means."""
    samples = domain_means(values_WR, design)
    means_CR = design.sums(values_WR) / design.sums(np.ones_like(values_WR))
    return [Replication(gated(sample), means_CR[:, r]) for r, sample in enumerate(samples)]


def gated(sample: Resampled) -> Interval:
    """A mean as it stands in a receipt where a gate is put on it."""
    return interval(sample, CONFIDENCE) | passing_bound(sample, (1.0 - CONFIDENCE) / 2.0)


def outcome(found: Replication, limits: dict[str, float]) -> str:
    """The product's predicate on one simulated domain."""
    documents = len(found.means_C)
    count = int((found.means_C > limits["document_nll"]).sum())
    row: dict[str, Any] = {"name": "simulated", "role": "base", "documents": documents, "windows": documents}
    row |= {"non_finite_windows": 0, "non_finite_base": 0, "nll_increase": found.increase}
    row["damaged_documents"] = {
        "count": count,
        "documents": documents,
        "share": count / documents,
        "share_high": _share_high(count, documents),
    }
    # Losses are simulated, not the distributions that they come from.
    receipt = {"probe": {"policy": {"damage": limits | {"kl": None}}}, "domains": [row]}
    return damage_outcome(damage_gates(ReceiptView(receipt)))


@lru_cache(maxsize=4096)
def _share_high(count: int, documents: int) -> float:
    return clopper_pearson_upper(count, documents)


def _share(found: list[Replication], limits: dict[str, float], wanted: str) -> float:
    return float(np.mean([outcome(row, limits) == wanted for row in found]))


def _bounds(found: list[Replication]) -> tuple[F64, F64]:
    lows = [-np.inf if row.increase["low"] is None else row.increase["low"] for row in found]
    highs = [np.inf if row.increase["high"] is None else row.increase["high"] for row in found]
    return np.array(lows), np.array(highs)
