"""Real documents instead of invented ones: resample the lab's own increases of the NLL, moved to a known mean.

Shape legend: C documents, R replications.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from moe_atlas.statistics.design import make_design
from moe_atlas.verdict.gates.gate import PASS_FLOOR
from scripts.coverage.damage import MARGIN, replications

F64 = NDArray[np.float64]

DOCUMENTS = (PASS_FLOOR, 100)
SAME = 1e-6  # nats: a pair whose documents differ by less has nothing to resample


@dataclass(frozen=True)
class Population:
    """The increases of one domain's documents in one pair."""

    pair: str
    values_C: F64

    @property
    def skewness(self) -> float:
        """Third standardised moment."""
        return float(stats.skew(self.values_C))


@dataclass(frozen=True)
class Outcome:
    """How often intervals of resampled documents hold the known mean."""

    documents: int
    populations: int
    covered: float
    bound_missed: float
    pass_missed: float
    worst: str
    worst_missed: float


def populations(path: Path, per_domain: int = 50) -> Iterator[Population]:
    """Every domain of every pair in the lab's table of documents."""
    with path.open(encoding="utf-8") as file:
        for family, pair, *values in csv.reader(file):
            increases = np.array(values, dtype=np.float64)
            for number, part in enumerate(np.split(increases, len(increases) // per_domain)):
                if np.isfinite(part).all() and part.std() > SAME:
                    yield Population(f"{family} {pair}, domain {number}", part)


def simulate(found: list[Population], documents: int, reps: int, resamples: int, seed: int) -> Outcome:
    """Draw documents with replacement from each population, moved to a mean of the margin."""
    covered, missed, passed = [], [], []
    document_C = np.arange(documents)
    for number, population in enumerate(found):
        rng = np.random.default_rng([seed, number, documents])
        design = make_design(np.zeros_like(document_C), document_C, seed + number, resamples)
        moved_C = population.values_C - population.values_C.mean() + MARGIN
        rows = replications(rng.choice(moved_C, (documents, reps)), design)
        lows = np.array([-np.inf if row.increase["low"] is None else row.increase["low"] for row in rows])
        highs = np.array([np.inf if row.increase["high"] is None else row.increase["high"] for row in rows])
        covered.append(float(np.mean((lows <= MARGIN) & (highs >= MARGIN))))
        missed.append(float(np.mean(highs < MARGIN)))
        bounds = [row.increase.get("pass_high") for row in rows]
        passed.append(float(np.mean([bound is not None and bound < MARGIN for bound in bounds])))
    worst = int(np.argmax(passed))
    named = f"{found[worst].pair} (skewness {found[worst].skewness:+.1f})"
    rates = [float(np.mean(column)) for column in (covered, missed, passed)]
    return Outcome(documents, len(found), rates[0], rates[1], rates[2], named, passed[worst])


def table(outcomes: list[Outcome], reps: int) -> str:
    """Rates in per cent."""
    lines = [
        "| documents drawn | populations | interval covers | bound below truth | bound of a pass below truth "
        "| the worst population | there |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        rates = " | ".join(f"{100 * x:.1f}" for x in (one.covered, one.bound_missed, one.pass_missed))
        lines.append(
            f"| {one.documents} | {one.populations} | {rates} | {one.worst} | {100 * one.worst_missed:.1f} |"
        )
    return "\n".join([*lines, "", f"{reps} draws of each population."])
