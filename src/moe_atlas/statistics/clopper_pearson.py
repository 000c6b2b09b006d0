"""The tail guard: an upper bound on the share of damaged documents, from the number of damaged documents in the sample.

A mean hides damage in a tenth of the documents; the exact Clopper-Pearson bound on their share does not. The bound is a
quantile of the beta distribution. This module computes it from binomial tails by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable

TAIL = 0.025  # one-sided error of the guard: a 97.5 % upper bound


def log_choose(n: int, k: int) -> float:
    """Return the natural logarithm of the binomial coefficient."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Return P(X <= k) for X binomial(n, p), summed term by term in log space."""
    if k < 0 or (p >= 1.0 and k < n):
        return 0.0
    if k >= n or p <= 0.0:
        return 1.0
    log_p, log_q = math.log(p), math.log1p(-p)
    return math.fsum(math.exp(log_choose(n, i) + i * log_p + (n - i) * log_q) for i in range(k + 1))


def clopper_pearson_upper(successes: int, trials: int, tail: float = TAIL) -> float:
    """Return the exact upper confidence bound on a share, one-sided error ``tail``; 1.0 without trials."""
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be in 0..{trials}, found {successes}")
    if successes == trials:
        return 1.0
    return _solve(lambda p: binomial_cdf(successes, trials, p) - tail)


def clopper_pearson_lower(successes: int, trials: int, tail: float = TAIL) -> float:
    """Return the exact lower confidence bound on a share, one-sided error ``tail``; 0.0 without trials."""
    return 1.0 - clopper_pearson_upper(trials - successes, trials, tail)


def _solve(decreasing: Callable[[float], float]) -> float:
    """Return the smallest representable number in (0, 1) at or above the root of a decreasing function."""
    low, high = 0.0, 1.0
    while True:
        middle = 0.5 * (low + high)
        if middle in (low, high):
            return high
        low, high = (middle, high) if decreasing(middle) > 0.0 else (low, middle)
