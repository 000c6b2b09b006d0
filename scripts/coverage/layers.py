"""48 correlated layers, all exactly at their budget: how often does some layer fail?

Shape legend: C documents, L layers, R replications.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from moe_atlas.statistics.bootstrap import domain_means
from moe_atlas.statistics.design import make_design
from moe_atlas.statistics.resampled import lower_bound
from moe_atlas.statistics.simultaneous import simultaneous_lower
from scripts.coverage.damage import DOCUMENTS
from scripts.coverage.draws import SHAPES, TOUCHED, standardised

F64 = NDArray[np.float64]

LAYERS = 48
BUDGET = 0.05
TAIL = 0.025
NEIGHBOURS = (0.5, 0.95)  # correlation of adjacent layers; it falls off geometrically with their distance
BATCH = 20


@dataclass(frozen=True)
class Family:
    """The false failures of one cell, as shares of the replications.

    Attributes:
        shape: distribution of a document's drift.
        neighbours: correlation of adjacent layers.
        documents: C.
        pointwise: some layer's own lower bound lies above the true value.
        simultaneous: some layer's simultaneous lower bound does (nominal 2.5 %).
    """

    shape: str
    neighbours: float
    documents: int
    pointwise: float
    simultaneous: float


def grid() -> list[tuple[str, float, int]]:
    """All cells."""
    return list(product(SHAPES, NEIGHBOURS, DOCUMENTS))


def simulate(shape: str, neighbours: float, documents: int, reps: int, resamples: int, seed: int) -> Family:
    """Run one cell: 48 layers whose true mean is the budget."""
    wrong_point = wrong_family = 0
    document_C = np.arange(documents)
    for number, begin in enumerate(range(0, reps, BATCH)):
        rng = np.random.default_rng([seed, number, documents])
        design = make_design(np.zeros_like(document_C), document_C, seed + number, resamples)
        for _ in range(min(BATCH, reps - begin)):
            samples = domain_means(drifts(shape, neighbours, documents, rng), design)
            wrong_point += any(lower_bound(sample, TAIL) > BUDGET for sample in samples)
            bounds = simultaneous_lower(samples, TAIL)
            wrong_family += any(bound is not None and bound > BUDGET for bound in bounds)
    return Family(shape, neighbours, documents, wrong_point / reps, wrong_family / reps)


def drifts(shape: str, neighbours: float, documents: int, rng: np.random.Generator) -> F64:
    """Documents' drift in every layer, float64 [C, L], of mean BUDGET; correlation as of a Markov chain."""
    fresh_LC = rng.standard_normal((LAYERS, documents))
    chain = [fresh_LC[0]]
    for fresh in fresh_LC[1:]:
        chain.append(neighbours * chain[-1] + np.sqrt(1.0 - neighbours**2) * fresh)
    normal_CL = np.stack(chain, axis=1)
    if shape != "concentrated":
        return BUDGET + 0.5 * BUDGET * standardised(shape, normal_CL)
    touched_C = rng.random(documents) < TOUCHED
    return 0.1 * BUDGET * normal_CL + (BUDGET / TOUCHED) * touched_C[:, None]
