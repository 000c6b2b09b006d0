"""An estimate with its resampling distribution, and the interval that follows from both.

Legend: B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

Interval = dict[str, Any]

NO_VARIANCE = "no variance between documents"


@dataclass(frozen=True)
class Resampled:
    """A number, its standard error and its studentised resamples.

    Attributes:
        estimate: the value on the data; NaN if undefined.
        se: standard error on the data (bootstrap-t), or the spread of the resamples (basic).
        t_B: studentised resamples, float64 [B]; a resample that cannot be studentised is +-inf or NaN and counts
            against both bounds.
        windows: number of windows behind the number.
        documents: number of documents behind the number.
        reason: why the number or its interval is undefined; None if both are defined.
        exact: whether the value follows from inputs of equal values and has no sampling error.
        values_B: the value on every resample; it gives the bound if the studentised resamples give none.
        rare_high: an upper bound that needs no variance (`stringer`), for a non-negative quantity that is zero in most
            documents; it replaces a missing bound.
        switching: whether the functional is an extremum over experts that may switch experts between resamples; each
            bound then uses the wider of the two tails (`switching` in `bootstrap`).
        effective: effective documents of a mean (`passing`); None for other quantities.
    """

    estimate: float
    se: float
    t_B: F64 | None
    windows: int
    documents: int
    reason: str | None = None
    exact: bool = False
    values_B: F64 | None = None
    rare_high: float | None = None
    switching: bool = False
    effective: float | None = None


def undefined(reason: str, windows: int = 0, documents: int = 0) -> Resampled:
    """Return the sample of a number that does not exist, with its reason."""
    return Resampled(float("nan"), float("nan"), None, windows, documents, reason)


def exact_zero(windows: int, documents: int) -> Resampled:
    """Return the sample of a difference between equal values."""
    return Resampled(0.0, 0.0, None, windows, documents, None, exact=True)


def tail_rank(resamples: int, tail: float) -> int:
    """Return how many resamples lie at or beyond a one-sided bound; 0 if there are too few resamples.

    The rank of the order statistic is floor((B + 1) * tail), without interpolation, so a bound is finite only if the
    resamples support it.
    """
    return int(np.floor((resamples + 1) * tail + 1e-9))


def upper_quantile(t_B: F64, tail: float) -> float:
    """Return the value that a share ``tail`` of the resamples reaches; undefined resamples count as +inf."""
    rank = tail_rank(len(t_B), tail)
    if rank < 1:
        return float("inf")
    return float(np.partition(np.where(np.isnan(t_B), np.inf, t_B), len(t_B) - rank)[len(t_B) - rank])


def lower_bound(sample: Resampled, tail: float) -> float:
    """Return the one-sided lower bound at error ``tail``; -inf if the resamples do not bound it."""
    return _bound(sample, tail, 1.0)


def upper_bound(sample: Resampled, tail: float) -> float:
    """Return the one-sided upper bound at error ``tail``; +inf if the resamples do not bound it."""
    return _bound(sample, tail, -1.0)


def _bound(sample: Resampled, tail: float, sign: float) -> float:
    """Return the lower bound for sign 1, the upper bound for sign -1."""
    if sample.exact:
        return sample.estimate
    if sample.reason is not None or sample.t_B is None:
        return -sign * float("inf")
    step = upper_quantile(sign * sample.t_B, tail)
    if sample.switching:
        step = max(step, upper_quantile(-sign * sample.t_B, tail))
    bound = sample.estimate if sample.se == 0.0 else sample.estimate - sign * step * sample.se
    if np.isfinite(bound):
        return bound
    if sample.values_B is not None:
        return sample.estimate - sign * upper_quantile(sign * (sample.values_B - sample.estimate), tail)
    if sample.rare_high is not None:
        return sample.rare_high if sign < 0 else 0.0
    return bound


def interval(
    sample: Resampled, confidence: float, floor: float = -np.inf, ceiling: float = np.inf
) -> Interval:
    """Return the two-sided interval in the form of a receipt.

    Args:
        sample: the number and its resamples.
        confidence: two-sided confidence; each tail gets half of the error.
        floor: smallest value that the quantity can take; the interval is clipped there.
        ceiling: largest value that the quantity can take; the interval is clipped there.

    Returns:
        ``{"estimate", "low", "high", "windows", "documents"}``. A bound that is not finite is null and comes with a
        ``reason``. A difference between equal values also has ``"exact": True``.
    """
    tail = (1.0 - confidence) / 2.0
    low, high = lower_bound(sample, tail), upper_bound(sample, tail)
    out: Interval = {
        "estimate": finite(sample.estimate),
        "low": finite(max(low, floor)) if np.isfinite(low) else None,
        "high": finite(min(high, ceiling)) if np.isfinite(high) else None,
        "windows": sample.windows,
        "documents": sample.documents,
    }
    if sample.exact:
        out["exact"] = True
    if sample.reason is not None:
        out["reason"] = sample.reason
    elif out["low"] is None or out["high"] is None:
        out["reason"] = "the resamples do not bound it"
    return out


def finite(value: float) -> float | None:
    """Return the value as a JSON number, or None if it is not finite."""
    return float(value) if np.isfinite(value) else None
