"""Rank correlation, partial rank correlation and leave-one-out prediction, with bootstrap intervals over pairs.

Shape legend: P pairs, Q predictors, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_atlas.falsification.readings import ranks_within
from moe_atlas.statistics import generator

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 7
ROUNDING = 1e-9  # of ranks, which lie in 0..1


@dataclass(frozen=True)
class Statistic:
    """A statistic with its percentile interval over resampled pairs."""

    name: str
    estimate: float
    low: float
    high: float
    pairs: int


def correlation(x_P: F64, y_P: F64) -> float:
    """Return Pearson's correlation; 0 if one of the variables is constant."""
    x, y = x_P - x_P.mean(), y_P - y_P.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0.0 else 0.0


def partial(x_P: F64, y_P: F64, given_PQ: F64) -> float:
    """Return the correlation of the residuals of linear fits on `given`; 0 if a residual is rounding error alone."""
    design = np.column_stack([np.ones(len(x_P)), given_PQ])
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x_P, y_P)]
    if any(float(np.abs(v).max()) <= ROUNDING for v in left):
        return 0.0
    return correlation(left[0], left[1])


def left_out_errors(predictors_PQ: F64, y_P: F64) -> F64:
    """Return the squared error at each pair of a least-squares fit without this pair (from the hat matrix), [P]."""
    design = np.column_stack([np.ones(len(y_P)), predictors_PQ])
    hat = design @ np.linalg.pinv(design)
    residual = y_P - hat @ y_P
    leverage = np.clip(np.diag(hat), 0.0, 1.0 - 1e-9)
    return np.asarray((residual / (1.0 - leverage)) ** 2)


def resampled(pairs: Sequence[str], seed: int = SEED, resamples: int = RESAMPLES) -> list[I64]:
    """Return indices of resampled pairs, B x [P], drawn within each family; the same on every machine."""
    labels = np.asarray(pairs)
    drawn = []
    for stream, family in enumerate(np.unique(labels)):
        members = np.flatnonzero(labels == family)
        key = generator.stream_key(seed, stream)
        picks = generator.integers(key, len(members), resamples * len(members)).reshape(resamples, -1)
        drawn.append(members[picks])
    return list(np.concatenate(drawn, axis=1))


def with_interval(
    name: str, statistic: Callable[[I64], float], families: Sequence[str], resamples: int = RESAMPLES
) -> Statistic:
    """Return a statistic of a set of pairs with its percentile interval over resampled pairs."""
    values = np.array([statistic(index) for index in resampled(families, resamples=resamples)])
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Statistic(name, statistic(np.arange(len(families))), float(low), float(high), len(families))


def within(values_P: F64, families: Sequence[str], index: I64) -> F64:
    """Return the ranks within families of the pairs at `index`."""
    return ranks_within(values_P[index], np.asarray(families)[index].tolist())
