"""Simulated windows: documents of correlated windows under four shapes of damage.

Shape legend: W windows, C documents, R replications.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

F64 = NDArray[np.float64]

SHAPES = ("normal", "skewed", "heavy-tailed", "concentrated")
SPREAD = 0.04  # nats: standard deviation of a window, twice the margin that is tested
QUIET = 0.01  # nats: the same for windows of documents that the damage left alone
TOUCHED = 0.1  # share of documents that carry all the damage under `concentrated`
WINDOWS = 4  # windows of a document; unequal documents have as many on average


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Attributes:
        shape: one of SHAPES.
        unequal: whether documents differ in their number of windows.
        documents: C.
        correlation: of two windows of one document, on the latent normal scale.
    """

    shape: str
    unequal: bool
    documents: int
    correlation: float


def document_of_windows(cell: Cell, rng: np.random.Generator) -> NDArray[np.int64]:
    """The document number of every window; unequal sizes are 1 + a geometric number, at most 16."""
    if cell.unequal:
        sizes = np.minimum(16, rng.geometric(1.0 / WINDOWS, cell.documents))
    else:
        sizes = np.full(cell.documents, WINDOWS)
    return np.repeat(np.arange(cell.documents), sizes)


def latent(document_W: NDArray[np.int64], correlation: float, reps: int, rng: np.random.Generator) -> F64:
    """Standard normals, float64 [W, R], correlated within documents."""
    shared_CR = rng.standard_normal((int(document_W.max()) + 1, reps))
    own_WR = rng.standard_normal((len(document_W), reps))
    latent_WR: F64 = np.sqrt(correlation) * shared_CR[document_W] + np.sqrt(1.0 - correlation) * own_WR
    return latent_WR


def standardised(shape: str, normal: F64) -> F64:
    """Turn standard normals into mean 0, variance 1 of another shape."""
    turned = normal
    if shape == "skewed":  # lognormal with sigma 1: skewness 6.2
        turned = (np.exp(normal) - np.exp(0.5)) / np.sqrt((np.e - 1.0) * np.e)
    if shape == "heavy-tailed":  # Student's t, 3 degrees of freedom: no fourth moment
        turned = stats.t.ppf(stats.norm.cdf(normal), 3) / np.sqrt(3.0)
    return turned


def increases(
    cell: Cell, document_W: NDArray[np.int64], mean: float, reps: int, rng: np.random.Generator
) -> F64:
    """Windows' increases of the NLL in nats, float64 [W, R], whose population mean is `mean`.

    `concentrated`: each document is touched with probability TOUCHED, and touched ones carry everything.
    """
    normal_WR = latent(document_W, cell.correlation, reps, rng)
    if cell.shape != "concentrated":
        return mean + SPREAD * standardised(cell.shape, normal_WR)
    touched_CR = rng.random((cell.documents, reps)) < TOUCHED
    return QUIET * normal_WR + (mean / TOUCHED) * touched_CR[document_W]
