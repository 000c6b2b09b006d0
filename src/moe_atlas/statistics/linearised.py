"""Functionals with their influences: a value, and the first-order effect of each document on it.

For a batch of resamples, a `Linearised` holds the value of a functional and the first-order influence of every document
on this value. Its arithmetic follows the chain rule. So a functional that is written once (a ratio, an entropy, the
load of a margin) provides its own standard error: the square root of the sum over domains of
n/(n-1) sum w (psi - mean psi)^2. This is the infinitesimal jackknife of a stratified cluster sample on each resample.

Legend: R resamples in the batch (1 for the data itself), C documents, N documents of one stratum, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_atlas.statistics.design import Design

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Linearised:
    """A functional on a batch of resamples.

    Attributes:
        value_R: value of the functional, float64 [R].
        psi_RC: influence of one more draw of each document, up to a constant per stratum, float64 [R, C].
    """

    value_R: F64
    psi_RC: F64

    def __add__(self, other: Linearised | float) -> Linearised:
        if isinstance(other, Linearised):
            return Linearised(self.value_R + other.value_R, self.psi_RC + other.psi_RC)
        return Linearised(self.value_R + other, self.psi_RC)

    __radd__ = __add__

    def __neg__(self) -> Linearised:
        return Linearised(-self.value_R, -self.psi_RC)

    def __sub__(self, other: Linearised | float) -> Linearised:
        return self + (-other)

    def __rsub__(self, other: float) -> Linearised:
        return -self + other

    def __mul__(self, factor: float) -> Linearised:
        return Linearised(self.value_R * factor, self.psi_RC * factor)

    __rmul__ = __mul__

    def __truediv__(self, other: Linearised | float) -> Linearised:
        if not isinstance(other, Linearised):
            return self * (1.0 / other)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio_R = self.value_R / other.value_R
            psi_RC = (self.psi_RC - ratio_R[:, None] * other.psi_RC) / other.value_R[:, None]
        return Linearised(ratio_R, psi_RC)

    def exp(self) -> Linearised:
        """Return e to the power of this functional."""
        value_R = np.exp(self.value_R)
        return Linearised(value_R, value_R[:, None] * self.psi_RC)


@dataclass(frozen=True)
class ResampleBatch:
    """A batch of resamples of one design, on which functionals are evaluated.

    Attributes:
        design: strata and documents.
        weights_RC: draws of each document, float64 [R, C].
    """

    design: Design
    weights_RC: F64

    def domain_mean(self, total_C: F64, count_C: F64) -> Linearised:
        """Return the mean over domains, equally weighted, of total/count within each domain.

        Args:
            total_C: sum of the quantity over the defined windows (or tokens) of each document.
            count_C: number of defined windows (or tokens) of each document.
        """
        value_R = np.zeros(len(self.weights_RC))
        psi_RC = np.empty_like(self.weights_RC)
        share = 1.0 / len(self.design.slices)
        for part in self.design.slices:
            weights_RN = self.weights_RC[:, part]
            count_R = weights_RN @ count_C[part]
            with np.errstate(divide="ignore", invalid="ignore"):
                centre = total_C[part].sum() / count_C[part].sum()
                centred_N = total_C[part] - centre * count_C[part]
                shift_R = (weights_RN @ centred_N) / count_R
                psi_RN = (centred_N[None, :] - shift_R[:, None] * count_C[None, part]) / count_R[:, None]
            value_R += share * (centre + shift_R)
            psi_RC[:, part] = share * psi_RN
        return Linearised(value_R, psi_RC)

    def variance(self, psi_RC: F64) -> F64:
        """Return the stratified cluster variance of a functional with these influences, float64 [R].

        If the influences agree to 12 digits within every stratum, the variance is 0.
        """
        variance_R = np.zeros(len(psi_RC))
        scale_R = np.zeros(len(psi_RC))
        for part in self.design.slices:
            size = part.stop - part.start
            weights_RN, psi_RN = self.weights_RC[:, part], psi_RC[:, part]
            first_R = np.einsum("rn,rn->r", weights_RN, psi_RN) / size
            second_R = np.einsum("rn,rn->r", weights_RN, psi_RN**2)
            spread_R = np.einsum("rn,rn->r", weights_RN, (psi_RN - first_R[:, None]) ** 2)
            with np.errstate(invalid="ignore"):  # the variance of a single document is undefined
                variance_R += spread_R * (size / (size - 1) if size > 1 else np.inf)
            scale_R += second_R
        return np.where(variance_R <= 1e-24 * scale_R, 0.0, variance_R)


class Counts:
    """Pooled expert counts of one checkpoint in a batch, for the occupancy functionals of §4.5.

    Args:
        batch: the resamples.
        counts_CE: routed tokens per document and expert, float64 [C, E] of integers.
        tokens_C: measured tokens per document.
    """

    def __init__(self, batch: ResampleBatch, counts_CE: F64, tokens_C: F64) -> None:
        self.counts_CE = counts_CE
        self.tokens_C = tokens_C
        self.pooled_RE = batch.weights_RC @ counts_CE
        self.tokens_R = batch.weights_RC @ tokens_C
        self.total_R = self.pooled_RE.sum(axis=1)
        self.total_C = counts_CE.sum(axis=1)
        self.experts = counts_CE.shape[1]

    def load_entropy(self) -> Linearised:
        """Return the entropy of counts / sum of counts, in nats."""
        share_RE = self.pooled_RE / self.total_R[:, None]
        log_RE = np.log(np.where(share_RE > 0, share_RE, 1.0))
        value_R = -np.einsum("re,re->r", share_RE, log_RE)
        # d entropy / d count = -(log share + entropy) / total
        psi_RC = -(log_RE @ self.counts_CE.T + np.outer(value_R, self.total_C)) / self.total_R[:, None]
        return Linearised(value_R, psi_RC)

    def load_cv(self) -> Linearised:
        """Return the population standard deviation of the counts divided by their mean."""
        mean_R = self.total_R / self.experts
        centred_RE = self.pooled_RE - mean_R[:, None]
        value_R = np.sqrt(np.mean(centred_RE**2, axis=1)) / mean_R
        square_R = np.einsum("re,re->r", self.pooled_RE, self.pooled_RE) / self.total_R
        with np.errstate(divide="ignore", invalid="ignore"):
            factor_R = self.experts / (value_R * self.total_R**2)
            psi_RC = (self.pooled_RE @ self.counts_CE.T - np.outer(square_R, self.total_C)) * factor_R[
                :, None
            ]
        return Linearised(value_R, np.where(value_R[:, None] > 0, psi_RC, 0.0))

    def max_violation(self) -> Linearised:
        """Return (largest count - mean count) / mean count."""
        top_R = self.pooled_RE.argmax(axis=1)
        scaled_R = self.experts * self.pooled_RE.max(axis=1) / self.total_R
        influence_RC = self.experts * self.counts_CE.T[top_R] - np.outer(scaled_R, self.total_C)
        return Linearised(scaled_R - 1.0, influence_RC / self.total_R[:, None])

    def min_share(self) -> Linearised:
        """Return (smallest count + 1/2) / (tokens + 1), which is positive, so that ratios of it are finite."""
        low_R = self.pooled_RE.argmin(axis=1)
        value_R = (self.pooled_RE.min(axis=1) + 0.5) / (self.tokens_R + 1.0)
        influence_RC = self.counts_CE.T[low_R] - np.outer(value_R, self.tokens_C)
        return Linearised(value_R, influence_RC / (self.tokens_R + 1.0)[:, None])

    def dead(self) -> F64:
        """Return the number of experts that no token reached, float64 [R]; this step function has no influence."""
        return np.asarray((self.pooled_RE == 0).sum(axis=1), dtype=np.float64)
