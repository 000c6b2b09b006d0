"""Ratios pooled over all documents, for quantities that some domains may lack.

An expert that only code uses has a mean over the tokens that use it, but no mean in the domain prose. So these ratios
weight documents by their counts, whereas all other means weight domains equally. Resampling stays within domains.

Legend: C documents, N documents of one stratum, R resamples (1 for the data), B resamples, Q quantities.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moe_atlas.statistics.bootstrap import ONE_DOCUMENT, studentise_shift
from moe_atlas.statistics.design import Design
from moe_atlas.statistics.resampled import NO_VARIANCE, Resampled

F64 = NDArray[np.float64]

COLUMNS = 64  # columns in memory at a time


def pooled_ratios(total_CQ: F64, count_CQ: F64, design: Design) -> list[Resampled]:
    """Return bootstrap-t samples of ratios total/count pooled over all documents, resampled within domains.

    A column of zeros is exactly 0. A column of equal ratios other than 0 has no upper bound.

    Args:
        total_CQ: finite sums of each document, float64 [C, Q].
        count_CQ: number of values in each sum; at least one document of every column has a positive count.
        design: strata, documents and resamples.
    """
    samples: list[Resampled] = []
    for begin in range(0, total_CQ.shape[1], COLUMNS):
        part = slice(begin, begin + COLUMNS)
        samples += _pooled(total_CQ[:, part], count_CQ[:, part], design)
    return samples


def _pooled(total_CQ: F64, count_CQ: F64, design: Design) -> list[Resampled]:
    count_Q = count_CQ.sum(axis=0)
    ratio_Q = total_CQ.sum(axis=0) / count_Q
    centred_CQ = total_CQ - ratio_Q * count_CQ
    data_Q, _ = _pooled_variance(np.ones((1, design.documents)), centred_CQ, count_CQ, design)
    variance_BQ, shift_BQ = _pooled_variance(design.weights_BC, centred_CQ, count_CQ, design)
    same_Q = np.abs(centred_CQ).max(axis=0) <= 1e-12 * np.abs(total_CQ).max(axis=0)
    t_BQ = studentise_shift(shift_BQ, variance_BQ)
    out = []
    for q, documents in enumerate((count_CQ > 0).sum(axis=0).tolist()):
        sizes = int(count_Q[q]), documents
        if same_Q[q]:
            zero = not total_CQ[:, q].any()
            out.append(
                Resampled(float(ratio_Q[q]), 0.0, None, *sizes, None if zero else NO_VARIANCE, exact=zero)
            )
            continue
        reason = ONE_DOCUMENT if min(design.sizes) < 2 else None
        out.append(Resampled(float(ratio_Q[q]), float(np.sqrt(data_Q[0, q])), t_BQ[:, q], *sizes, reason))
    return out


def _pooled_variance(weights_RC: F64, centred_CQ: F64, count_CQ: F64, design: Design) -> tuple[F64, F64]:
    """Return the stratified cluster variance of pooled ratios on resamples, and their shift, float64 [R, Q] each."""
    with np.errstate(divide="ignore", invalid="ignore"):
        count_RQ = weights_RC @ count_CQ
        shift_RQ = (weights_RC @ centred_CQ) / count_RQ
        squares_RQ, scale_RQ = np.zeros_like(shift_RQ), np.zeros_like(shift_RQ)
        for part in design.slices:
            size, weights_RN = part.stop - part.start, weights_RC[:, part]
            centred_NQ, count_NQ = centred_CQ[part], count_CQ[part]
            first_RQ = weights_RN @ centred_NQ - shift_RQ * (weights_RN @ count_NQ)
            second_RQ = weights_RN @ centred_NQ**2
            second_RQ += shift_RQ * (
                shift_RQ * (weights_RN @ count_NQ**2) - 2.0 * (weights_RN @ (centred_NQ * count_NQ))
            )
            squares_RQ += (size / (size - 1) if size > 1 else np.inf) * (second_RQ - first_RQ**2 / size)
            scale_RQ += second_RQ
        variance_RQ = np.where(squares_RQ <= 1e-12 * scale_RQ, 0.0, squares_RQ) / count_RQ**2
    return np.where(np.isfinite(shift_RQ), variance_RQ, np.nan), shift_RQ
