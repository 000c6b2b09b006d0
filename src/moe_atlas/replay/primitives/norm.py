"""Normalisations in the two steps of the theory: the canonical state z, then the gain.

Legend: T tokens (any leading dimensions), D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.models.mixers import Norm


def standardise(x_TD: Tensor, spec: Norm) -> Tensor:
    """Return the canonical pre-gain state z in float32 (Eq. 1-2): x / rms(x), or (x − mean) / σ for LayerNorm.

    Args:
        x_TD: residual state, any floating-point dtype.
        spec: kind and the model's own epsilon, which is added to the mean square.
    """
    x = x_TD.float()
    if spec.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + spec.eps)


class Canonical:
    """Canonical states of some tokens, computed on demand; stored, they would take twice the memory of the residuals.

    Args:
        x_TD: residuals of a batch, any floating-point dtype.
        spec: the norm in front of the router.
        tokens_M: indices of these tokens in the batch, int64; state m belongs to token `tokens_M[m]`.
    """

    def __init__(self, x_TD: Tensor, spec: Norm, tokens_M: Tensor) -> None:
        self._x_TD, self._spec, self._tokens_M = x_TD, spec, tokens_M
        self.shape = (len(tokens_M), x_TD.shape[1])

    def parts(self, tokens_P: Tensor) -> tuple[Tensor, Tensor]:
        """Return residuals (minus their mean for LayerNorm) and the factors that turn them into z, for some states.

        Returns:
            float32 [P, D] and [P].
        """
        x_PD = self._x_TD.index_select(0, self._tokens_M[tokens_P]).float()
        if self._spec.kind == "layer":
            x_PD = x_PD - x_PD.mean(-1, keepdim=True)
        mean_square_P = torch.linalg.vector_norm(x_PD, dim=-1).square() / x_PD.shape[1]
        return x_PD, torch.rsqrt(mean_square_P + self._spec.eps)


def apply_gain(
    z_TD: Tensor, spec: Norm, weight_D: Tensor, bias_D: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return the gate coordinate Γz (Eq. 3) in `dtype`, rounded where the reference implementation rounds."""
    if spec.kind == "rms":
        return weight_D.to(dtype) * z_TD.to(dtype)
    weight = weight_D.float() if spec.kind == "rms32_stored" else weight_D.to(dtype).float()
    if spec.kind == "rms1p":
        return ((1.0 + weight) * z_TD).to(dtype)
    g_TD = weight * z_TD
    return (g_TD if bias_D is None else g_TD + bias_D.to(dtype).float()).to(dtype)


def gain_float32(z_TD: Tensor, spec: Norm, weight_D: Tensor, bias_D: Tensor | None) -> Tensor:
    """Return the gate coordinate Γz in float32 from the stored gain, with no rounding in between."""
    return apply_gain(z_TD, spec, weight_D.float(), None if bias_D is None else bias_D.float(), torch.float32)


def normalise(x_TD: Tensor, spec: Norm, weight_D: Tensor, bias_D: Tensor | None = None) -> Tensor:
    """Normalise and apply the gain, in the dtype of `x_TD`."""
    return apply_gain(standardise(x_TD, spec), spec, weight_D, bias_D, x_TD.dtype)
