"""Evidence for a PASS on a mean: a stricter upper bound than that of the interval, and the effective documents.

With skewed damage and up to some 200 documents, an upper bound with a one-sided error of 2.5 % falls below the truth
about twice as often as stated. The data cannot show when this happens: a sample that misses the tail looks harmless, so
a correction for the observed skewness helps least where it is needed most. A bound at two fifths of the error, applied
to every mean, keeps the stated error for all simulated shapes and costs healthy pairs next to nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moe_atlas.statistics.resampled import Resampled, upper_bound

ERROR_SHARE = 0.4  # share of an interval's one-sided error: 1 % at a confidence of 95 %


def effective_documents(count_C: NDArray[np.float64], sizes: tuple[int, ...]) -> float:
    """Return Kish's effective sample size of a mean with equally weighted domains: 1 / sum of squared weights.

    With equally many windows in all documents, this is the number of documents.

    Args:
        count_C: windows (or tokens) of each document, float64 [C], documents sorted by domain.
        sizes: documents of each domain.

    Returns:
        The number; 0 if a domain has no window.
    """
    squares = 0.0
    for count_N in np.split(count_C, np.cumsum(sizes)[:-1]):
        if not count_N.sum() > 0:
            return 0.0
        squares += float(np.sum((count_N / count_N.sum()) ** 2)) / len(sizes) ** 2
    return 1.0 / squares


def passing_bound(sample: Resampled, tail: float, ceiling: float = np.inf) -> dict[str, float | None]:
    """Return the receipt entries that a gate on a mean needs beside the interval; empty if the sample is no mean.

    Args:
        sample: the mean.
        tail: one-sided error of the registered interval.
        ceiling: largest value that the quantity can take.

    Returns:
        `effective_documents` and `pass_high`: the upper bound at ERROR_SHARE of `tail`, never below the upper bound
        of the interval; None if the resamples do not bound it.
    """
    if sample.effective is None or sample.exact or sample.reason is not None:
        return {}
    high = max(upper_bound(sample, tail), upper_bound(sample, ERROR_SHARE * tail))
    bound = float(min(high, ceiling)) if np.isfinite(high) else None
    return {"effective_documents": sample.effective, "pass_high": bound}
