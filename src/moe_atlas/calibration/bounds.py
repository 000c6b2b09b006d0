"""One-sided prediction bounds on the next healthy tune, from a few values."""

from __future__ import annotations

import math
from collections.abc import Sequence

FEWEST = 3  # pairs; from two, the 99 % quantile of t is 32 deviations, too wide for a budget


def student_cdf(t: float, freedom: int) -> float:
    """Return P(T <= t) of Student's t with integer degrees of freedom (Abramowitz and Stegun 26.7.3-4)."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for number in range(freedom // 2):
        step = 1 + odd + 2 * number
        total += term
        term *= cosine * cosine * step / (step + 1)
    if odd:
        return 0.5 + (theta + sine * total) / math.pi
    return 0.5 + 0.5 * sine * total


def student_quantile(level: float, freedom: int) -> float:
    """Return the t with P(T <= t) = `level`, for a level in 0.5..1, by bisection."""
    high = 1.0
    while student_cdf(high, freedom) < level:
        high *= 2.0
    low = 0.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if student_cdf(middle, freedom) < level else (low, middle)
    return high


def prediction_bound(values: Sequence[float], level: float) -> float:
    """Return the upper bound for a further value of a normal sample: mean + t * deviation * sqrt(1 + 1/n).

    Args:
        values: at least two values.
        level: one-sided probability that the next value stays below.
    """
    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean + student_quantile(level, n - 1) * deviation * math.sqrt(1.0 + 1.0 / n)


def distribution_free_level(n: int) -> float:
    """Return n/(n+1): the probability that a further value stays below the largest of n, for any continuous law."""
    return n / (n + 1)


def rounded_down(value: float) -> float:
    """Return a positive `value` rounded down to two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.floor(value / unit + 1e-9) * unit, 12)


def rounded_up(value: float) -> float:
    """Return `value` rounded up to two significant digits; 0 if it is not positive."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - 1e-9) * unit, 12)
