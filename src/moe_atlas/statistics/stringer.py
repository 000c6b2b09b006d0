"""An upper bound for quantities that are zero in most documents, for which resampling gives no bound.

A light tune flips a few routed sets in a few documents. Some bootstrap resamples contain none of these documents. Such
resamples have no variance for studentising, so the bootstrap gives no bound, however many documents there are. Auditors
of accounts have similar data (few errors, each of bounded size) and use Stringer's bound. It combines Clopper-Pearson
bounds on the number of affected documents with the sizes of the observed effects. It needs no variance, only a known
ceiling.

Legend: C documents.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moe_atlas.statistics.clopper_pearson import clopper_pearson_upper

RARE = 0.5  # the bound applies if at least this share of documents is exactly zero


@lru_cache(maxsize=4096)
def _affected(count: int, documents: int, tail: float) -> float:
    return clopper_pearson_upper(count, documents, tail)


def is_rare(values_C: NDArray[np.float64]) -> bool:
    """Return whether a quantity is never negative and exactly zero in at least half of the documents."""
    return bool(len(values_C) and np.mean(values_C == 0.0) >= RARE and np.all(values_C >= 0.0))


def stringer_upper(values_C: NDArray[np.float64], ceiling: float, tail: float) -> float:
    """Return Stringer's upper bound on the mean of a quantity in 0..ceiling, with one-sided error `tail`.

    The bound is ``ceiling * (p(0) + sum_j (p(j) - p(j-1)) z_j)``, where p(j) is the Clopper-Pearson upper bound for j
    affected documents of C, and z_j is the j-th largest value divided by the ceiling. If every value is 0 or the
    ceiling, the bound equals the Clopper-Pearson bound; otherwise it is known to be conservative.

    Args:
        values_C: one value per document, float64, in 0..ceiling.
        ceiling: largest value that the quantity can take.
        tail: one-sided error.
    """
    documents = len(values_C)
    taints = np.sort(values_C[values_C > 0.0])[::-1] / ceiling
    shares = [_affected(j, documents, tail) for j in range(len(taints) + 1)]
    bound = shares[0] + float(np.sum(np.diff(shares) * taints))
    return min(ceiling, ceiling * bound)
