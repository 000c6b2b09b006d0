"""An estimate together with its resampling distribution, and the interval it gives.

Shape legend: B resamples.
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
class Sample:
    """A number, its standard error and its studentised resamples.

    Attributes:
        estimate: the value on the data; NaN when undefined.
        se: standard error on the data (bootstrap-t), or the spread of the resamples (basic).
        t_B: studentised resamples, float64 [B]; a resample that cannot be studentised is +-inf or NaN and
            counts against both bounds.
        windows: windows that took part.
        documents: documents that took part.
        reason: why the number or its interval is undefined; None when both are defined.
        exact: the value follows from inputs of equal values and has no sampling error.
        values_B: the functional itself on every resample, where something is built on it; takes over where
            the studentised resamples give no bound.
        switching: the functional sits on an extremum over experts that switches from resample to resample; a
            bound takes the wider of the two tails (`switching` in `bootstrap`).
        rare_high: an upper bound that needs no variance (`stringer`), for a non-negative quantity that is zero
            in most documents; takes over where the resamples give none.
        effective: of a mean, how many equal documents weigh as its own do (`passing`).
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


def undefined(reason: str, windows: int = 0, documents: int = 0) -> Sample:
    """Return the sample of a number that does not exist, with its reason."""
    return Sample(float("nan"), float("nan"), None, windows, documents, reason)


def exact_zero(windows: int, documents: int) -> Sample:
    """Return the sample of a difference between things of equal values."""
    return Sample(0.0, 0.0, None, windows, documents, None, exact=True)


def tail_rank(resamples: int, tail: float) -> int:
    """Return how many resamples lie at or beyond a one-sided bound; 0 when there are too few of them.

    The order statistic at rank floor((B + 1) * tail), never an interpolation: bounds stay finite only when
    the resamples themselves support them.
    """
    return int(np.floor((resamples + 1) * tail + 1e-9))


def upper_quantile(t_B: F64, tail: float) -> float:
    """Return the value that a share ``tail`` of resamples reach; undefined resamples count as +inf."""
    rank = tail_rank(len(t_B), tail)
    if rank < 1:
        return float("inf")
    return float(np.partition(np.where(np.isnan(t_B), np.inf, t_B), len(t_B) - rank)[len(t_B) - rank])


def lower_bound(sample: Sample, tail: float) -> float:
    """Return the one-sided lower bound at error ``tail``; -inf when the resamples do not bound it."""
    return _bound(sample, tail, 1.0)


def upper_bound(sample: Sample, tail: float) -> float:
    """Return the one-sided upper bound at error ``tail``; +inf when the resamples do not bound it."""
    return _bound(sample, tail, -1.0)


def _bound(sample: Sample, tail: float, side: float) -> float:
    if sample.exact:
        return sample.estimate
    if sample.reason is not None or sample.t_B is None:
        return -side * float("inf")
    step = upper_quantile(side * sample.t_B, tail)
    if sample.switching:
        step = max(step, upper_quantile(-side * sample.t_B, tail))
    bound = sample.estimate if sample.se == 0.0 else sample.estimate - side * step * sample.se
    if np.isfinite(bound):
        return bound
    if sample.values_B is not None:
        return sample.estimate - side * upper_quantile(side * (sample.values_B - sample.estimate), tail)
    if sample.rare_high is not None:
        return sample.rare_high if side < 0 else 0.0
    return bound


def interval(sample: Sample, confidence: float, floor: float = -np.inf, ceiling: float = np.inf) -> Interval:
    """Return the two-sided interval as it stands in a receipt.

    Args:
        sample: the number and its resamples.
        confidence: two-sided confidence; each tail gets half of what is left.
        floor: smallest value the quantity can take; the interval is clipped there.
        ceiling: largest value the quantity can take.

    Returns:
        ``{"estimate", "low", "high", "windows", "documents"}``, a bound that is not finite being null with a
        ``reason``; ``"exact": True`` for differences between things of equal values.
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
    """Return the value as a JSON number, or None when it is not finite."""
    return float(value) if np.isfinite(value) else None
