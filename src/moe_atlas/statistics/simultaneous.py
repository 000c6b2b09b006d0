"""Bounds that hold for all protected layers at once (studentised max-T).

With 48 undamaged layers at 5 %, pointwise bounds flag some layer in 53-93 % of runs; simultaneous bounds in 3-5 %.

Legend: L layers, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_atlas.statistics.resampled import Resampled, upper_quantile


def simultaneous_lower(samples: Sequence[Resampled], tail: float) -> list[float | None]:
    """Return lower bounds of all layers that hold simultaneously with an error of at most ``tail``.

    T is the maximum over layers of the studentised resamples of one quantity. All layers use the same resamples, so T
    reflects their correlation. The bound of a layer is its estimate minus the upper quantile of T times its own se.

    Args:
        samples: the quantity in each layer. A layer whose sample is undefined or has no variance gets None and does not
            contribute to T. An exact sample, or a count that agrees on every resample, keeps its value.
        tail: one-sided error of the whole family.

    Returns:
        A bound per layer; None for a layer without a bound.
    """
    usable = [np.abs(s.t_B) if s.switching else s.t_B for s in samples if _usable(s) and s.t_B is not None]
    step = 0.0
    if usable:
        stacked_LB = np.stack([np.where(np.isnan(t_B), np.inf, t_B) for t_B in usable])
        step = upper_quantile(stacked_LB.max(axis=0), tail)
    return [_layer_bound(s, step) for s in samples]


def _usable(sample: Resampled) -> bool:
    return not sample.exact and sample.reason is None and sample.t_B is not None and sample.se > 0.0


def _layer_bound(sample: Resampled, step: float) -> float | None:
    if sample.exact or (sample.reason is None and sample.se == 0.0 and sample.t_B is not None):
        return sample.estimate
    if not _usable(sample):
        return None
    bound = sample.estimate - step * sample.se
    return float(bound) if np.isfinite(bound) else None
