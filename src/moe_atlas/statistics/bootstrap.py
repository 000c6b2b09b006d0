"""The cluster bootstrap: the kind of interval for each kind of quantity, and the reason.

* Means over windows with equally weighted domains: **bootstrap-t**. Each resample is studentised with its own cluster
  standard error, which keeps the coverage for skewed values on few documents. One product of resample weights and a
  matrix of sufficient statistics serves all columns (`domain_means`).
* Smooth functionals (entropy, load CV, ratios of means, the layer loads of the margins): **bootstrap-t** with the
  standard error of `linearised`, computed on each resample (`studentised`). The interval reflects the small-sample bias
  of entropies and extrema; a percentile interval would double this bias.
* A bootstrap-t bound is infinite if resamples have no variance, for example when few documents moved. Then functionals
  use the **basic** interval. A non-negative mean that is zero in most documents uses Stringer's bound (`stringer`),
  which needs no variance.
* Extrema over experts (minimum share, and the margin loads with a ratio of two minimum shares): the wider tail of the
  resamples on both sides (`switching`). The influence of an extremum belongs to the expert that is extreme in that
  resample. If a resample switches to another expert, its standard error does not reflect the size of the jump. The
  bootstrap-t bound would then miss several times as often as stated, and would sometimes be ten times too wide.
* Step functions (dead and active experts) and minima over layers that never gate: the **basic** interval,
  2 estimate - resamples (`basic`). Resampling can only lose experts, and the reflection removes this bias.

Legend: W windows, C documents, N documents of one stratum, B resamples, R resamples of a batch, Q quantities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moe_atlas.statistics.design import Design
from moe_atlas.statistics.linearised import Linearised, ResampleBatch
from moe_atlas.statistics.passing import effective_documents
from moe_atlas.statistics.resampled import NO_VARIANCE, Resampled, undefined

F64 = NDArray[np.float64]

BATCH_CELLS = 1 << 18  # resamples times documents in memory at a time
NOT_FINITE = "a window is not finite"
ONE_DOCUMENT = "a domain has fewer than two documents"

Functional = Callable[[ResampleBatch], Mapping[str, Linearised]]


def domain_means(values_WQ: F64, design: Design) -> list[Resampled]:
    """Return the bootstrap-t sample of every column's mean, with equally weighted domains.

    The mean leaves out NaN windows. A column with an infinite window has no estimate. A column that is undefined in
    all windows of a domain is undefined.

    Args:
        values_WQ: per-window values, float64 [W, Q].
        design: strata, documents and resamples.
    """
    infinite_Q = np.asarray(np.isinf(values_WQ).any(axis=0))
    defined_WQ = np.isfinite(values_WQ)
    total_CQ = design.sums(np.where(defined_WQ, values_WQ, 0.0))
    count_CQ = design.sums(defined_WQ.astype(np.float64))
    return column_means(total_CQ, count_CQ, design, infinite_Q)


def column_means(
    total_CQ: F64, count_CQ: F64, design: Design, infinite_Q: NDArray[np.bool_]
) -> list[Resampled]:
    """Return the bootstrap-t sample of every column's ratio total/count, with equally weighted domains.

    Args:
        total_CQ: sums per document, float64 [C, Q].
        count_CQ: number of summed values per document.
        design: strata, documents and resamples.
        infinite_Q: columns that have a non-finite window.
    """
    quantities = total_CQ.shape[1]
    if not design.slices:
        return [undefined("no windows") for _ in range(quantities)]
    estimate_Q, variance_Q = np.zeros(quantities), np.zeros(quantities)
    shift_BQ = np.zeros((design.resamples, quantities))
    variance_BQ = np.zeros((design.resamples, quantities))
    flat_Q = np.ones(quantities, dtype=bool)
    for part in design.slices:
        mean_Q, own_Q, moved_BQ, spread_BQ, same_Q = _stratum(
            total_CQ[part], count_CQ[part], design.weights_BC[:, part]
        )
        estimate_Q += mean_Q / len(design.slices)
        variance_Q += own_Q / len(design.slices) ** 2
        shift_BQ += moved_BQ / len(design.slices)
        variance_BQ += spread_BQ / len(design.slices) ** 2
        flat_Q &= same_Q
    windows_Q, documents_Q = count_CQ.sum(axis=0), (count_CQ > 0).sum(axis=0)
    t_BQ = studentise_shift(shift_BQ, variance_BQ)
    lonely = min(design.sizes) < 2
    out = []
    for q in range(quantities):
        reason = _reason(design, count_CQ[:, q], bool(infinite_Q[q]), bool(flat_Q[q]), lonely)
        estimate = float("nan") if infinite_Q[q] else float(estimate_Q[q])
        se = float(np.sqrt(variance_Q[q]))
        effective = effective_documents(count_CQ[:, q], design.sizes)
        sizes = int(windows_Q[q]), int(documents_Q[q])
        out.append(Resampled(estimate, se, t_BQ[:, q], *sizes, reason, effective=effective))
    return out


def _stratum(total_NQ: F64, count_NQ: F64, weights_BN: F64) -> tuple[F64, F64, F64, F64, NDArray[np.bool_]]:
    """Return mean, variance, resampled shift of the mean, resampled variance and flatness of one stratum.

    The sums are first centred at the stratum's mean, so the resampled second moments lose no digits.
    """
    size = len(total_NQ)
    factor = size / (size - 1) if size > 1 else np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_Q = total_NQ.sum(axis=0) / count_NQ.sum(axis=0)
        centred_NQ = total_NQ - mean_Q * count_NQ
        centred_NQ -= (centred_NQ.sum(axis=0) / count_NQ.sum(axis=0)) * count_NQ
        own_Q = factor * (centred_NQ**2).sum(axis=0) / count_NQ.sum(axis=0) ** 2
        first_BQ = weights_BN @ centred_NQ
        second_BQ = weights_BN @ centred_NQ**2
        if np.all(count_NQ == count_NQ[0, 0]):  # the usual case: all documents have equal counts
            total_BQ: F64 = np.full(1, size * count_NQ[0, 0])
            shift_BQ = first_BQ / total_BQ
            squares_BQ = second_BQ - shift_BQ * first_BQ * count_NQ[0, 0]
        else:
            total_BQ = weights_BN @ count_NQ
            shift_BQ = first_BQ / total_BQ
            cross_BQ = weights_BN @ (centred_NQ * count_NQ)
            squares_BQ = second_BQ - 2.0 * shift_BQ * cross_BQ + shift_BQ**2 * (weights_BN @ count_NQ**2)
        squares_BQ = np.where(squares_BQ <= 1e-12 * second_BQ, 0.0, squares_BQ)
        variance_BQ = factor * squares_BQ / total_BQ**2
        variance_BQ = np.where(np.isfinite(shift_BQ), variance_BQ, np.nan)
    same_Q = np.abs(centred_NQ).max(axis=0) <= 1e-12 * np.abs(total_NQ).max(axis=0)
    return mean_Q, own_Q, shift_BQ, variance_BQ, same_Q


def studentise_shift(shift: F64, variance: F64) -> F64:
    """Return shift / se; without variance, +-inf for a shifted resample and 0 for an unshifted one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = shift / np.sqrt(variance)
    return np.where((variance == 0.0) & (shift == 0.0), 0.0, t)


def _reason(design: Design, count_C: F64, infinite: bool, flat: bool, lonely: bool) -> str | None:
    if infinite:
        return NOT_FINITE
    if any(count_C[part].sum() == 0 for part in design.slices):
        return "undefined in every window" if count_C.sum() == 0 else "undefined in every window of a domain"
    if lonely:
        return ONE_DOCUMENT
    return NO_VARIANCE if flat else None


def studentised(functional: Functional, design: Design, windows: int) -> dict[str, Resampled]:
    """Return the bootstrap-t samples of smooth functionals; every resample gets its own standard error.

    Args:
        functional: maps a batch of resamples to named values with influences.
        design: strata, documents and resamples.
        windows: number of windows, which the samples report.
    """
    whole = ResampleBatch(design, np.ones((1, design.documents)))
    at_data = functional(whole)
    values = {key: np.empty(design.resamples) for key in at_data}
    variances = {key: np.empty(design.resamples) for key in at_data}
    step = max(1, BATCH_CELLS // max(1, design.documents))
    for begin in range(0, design.resamples, step):
        batch = ResampleBatch(design, design.weights_BC[begin : begin + step])
        for key, result in functional(batch).items():
            values[key][begin : begin + step] = result.value_R
            variances[key][begin : begin + step] = batch.variance(result.psi_RC)
    out = {}
    for key, result in at_data.items():
        estimate, variance = float(result.value_R[0]), float(whole.variance(result.psi_RC)[0])
        t_B = studentise_shift(_without_rounding(values[key] - estimate, estimate), variances[key])
        reason = _functional_reason(design, estimate, variance)
        out[key] = Resampled(
            estimate, float(np.sqrt(variance)), t_B, windows, design.documents, reason, values_B=values[key]
        )
    return out


def _without_rounding(shift_B: F64, estimate: float) -> F64:
    """Set shifts below the twelfth digit of the estimate to 0: they are rounding errors."""
    return np.where(np.abs(shift_B) <= 1e-12 * max(1e-300, abs(estimate)), 0.0, shift_B)


def _functional_reason(design: Design, estimate: float, variance: float) -> str | None:
    if not np.isfinite(estimate):
        return "undefined on the data"
    if min(design.sizes) < 2:
        return ONE_DOCUMENT
    return NO_VARIANCE if variance == 0.0 else None


def switching(sample: Resampled) -> Resampled:
    """Return a sample of the same functional whose bounds come from the resamples alone.

    Each bound uses the wider of the two tails, which gives the union of the percentile and the reflected interval.
    Each of these intervals misses on one side for a minimum that is recomputed on resamples. Data without variance
    still have a bound if the resamples differ.
    """
    if sample.values_B is None or sample.reason not in (None, NO_VARIANCE):
        return sample
    shift_B = sample.values_B - sample.estimate
    spread = float(np.sqrt(np.mean(shift_B**2)))
    if not np.isfinite(spread) or spread == 0.0:
        return sample
    return replace(sample, se=spread, t_B=shift_B / spread, reason=None, switching=True)


def basic(estimate: float, values_B: F64, design: Design, windows: int) -> Resampled:
    """Return the sample of a basic (reflected) interval, from a functional recomputed on every resample.

    If all resamples agree, the interval has width 0 and no reason. For a count of dead experts this is correct as long
    as the token counts vary between documents; the caller checks this.
    """
    if not (np.isfinite(estimate) and np.isfinite(values_B).all()):
        return undefined("undefined on the data or on a resample", windows, design.documents)
    reason = ONE_DOCUMENT if min(design.sizes) < 2 else None
    shift_B = values_B - estimate
    spread = float(np.sqrt(np.mean(shift_B**2)))
    t_B = shift_B / spread if spread > 0.0 else shift_B
    return Resampled(estimate, spread, t_B, windows, design.documents, reason, values_B=values_B)


def resampled_means(values_WQ: F64, design: Design) -> tuple[F64, F64]:
    """Return means with equally weighted domains on the data, float64 [Q], and on every resample, float64 [B, Q].

    Functionals over several layers use these means. The means leave out NaN windows; an infinite window makes its
    column NaN.
    """
    defined_WQ = np.isfinite(values_WQ)
    total_CQ = design.sums(np.where(defined_WQ, values_WQ, 0.0))
    count_CQ = design.sums(defined_WQ.astype(np.float64))
    estimate_Q = np.zeros(values_WQ.shape[1])
    values_BQ = np.zeros((design.resamples, values_WQ.shape[1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        for part in design.slices:
            centre_Q = total_CQ[part].sum(axis=0) / count_CQ[part].sum(axis=0)
            centred_NQ = total_CQ[part] - centre_Q * count_CQ[part]
            weights_BN = design.weights_BC[:, part]
            estimate_Q += centre_Q / len(design.slices)
            values_BQ += (centre_Q + weights_BN @ centred_NQ / (weights_BN @ count_CQ[part])) / len(
                design.slices
            )
    broken_Q = np.isinf(values_WQ).any(axis=0)
    return np.where(broken_Q, np.nan, estimate_Q), np.where(broken_Q, np.nan, values_BQ)
