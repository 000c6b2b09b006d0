"""An upper bound for quantities that are zero in most documents, where resampling has nothing to say.

A light tune flips a few routed sets in a few documents. The bootstrap then draws resamples without any of them, has
no variance to studentise with and gives no bound, however many documents there are. Auditors of accounts meet the
same data (few errors, each of bounded size) and use Stringer's bound: Clopper-Pearson bounds on how many documents
are touched at all, weighted by how much those seen were touched. It needs no variance, only a known ceiling.

Legend: C documents.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moe_atlas.statistics.clopper_pearson import clopper_pearson_upper

RARE = 0.5  # the bound is used where at least this share of documents is exactly zero


@lru_cache(maxsize=4096)
def _touched(count: int, documents: int, tail: float) -> float:
    return clopper_pearson_upper(count, documents, tail)


def is_rare(values_C: NDArray[np.float64]) -> bool:
    """Whether a non-negative quantity is exactly zero in at least half of the documents."""
    return bool(len(values_C) and np.mean(values_C == 0.0) >= RARE and np.all(values_C >= 0.0))


def stringer_upper(values_C: NDArray[np.float64], ceiling: float, tail: float) -> float:
    """Stringer's upper bound on the mean of a quantity in 0..ceiling, one-sided error `tail`.

    ``ceiling * (p(0) + sum_j (p(j) - p(j-1)) z_j)``, p(j) the Clopper-Pearson upper bound for j touched documents
    of C and z_j the j-th largest value over the ceiling. Equal to Clopper-Pearson where every value is 0 or the
    ceiling; known to be conservative otherwise.

    Args:
        values_C: one value a document, float64, in 0..ceiling.
        ceiling: the largest value the quantity can take.
        tail: one-sided error.
    """
    documents = len(values_C)
    taints = np.sort(values_C[values_C > 0.0])[::-1] / ceiling
    touched = [_touched(j, documents, tail) for j in range(len(taints) + 1)]
    bound = touched[0] + float(np.sum(np.diff(touched) * taints))
    return min(ceiling, ceiling * bound)
