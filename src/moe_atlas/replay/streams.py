"""Hyper-connections: a residual of several streams (mHC, arXiv 2512.24880; DeepSeek-V4, section 2.2).

A block reads x = Σ pre_n · h_n and writes h'_n = post_n · y + Σ_m comb_mn · h_m. The coefficients pre, post and comb
are computed from all streams of the token, normalised together. Sinkhorn-Knopp rounds make comb nearly doubly
stochastic.

Legend: N and M streams, D model width, … any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_atlas.models.mixers import Norm
from moe_atlas.models.spec import Streams
from moe_atlas.replay.primitives.norm import standardise

Weights = Mapping[str, Tensor]


def start(s: Streams, x_WSD: Tensor) -> Tensor:
    """Return the initial streams, [W, S, N, D]: every stream starts as the embedding."""
    return x_WSD[:, :, None].expand(-1, -1, s.count, -1).contiguous()


def read(s: Streams, w: Weights, role: str, state_ND: Tensor) -> Tensor:
    """Return the input of a block, [..., D], in the dtype of the state."""
    raw = coefficients(s, w, role, state_ND)[..., : s.count]
    scale = w[f"{role}.scale"].float()[0]
    return _mixture(s, raw, scale, w[f"{role}.base"].float()[: s.count], state_ND)


def write(s: Streams, w: Weights, role: str, state_ND: Tensor, y_D: Tensor) -> Tensor:
    """Return the streams after a block, [..., N, D], from the streams before it and its output [..., D]."""
    n = s.count
    raw, base = coefficients(s, w, role, state_ND), w[f"{role}.base"].float()
    _, post_scale, comb_scale = w[f"{role}.scale"].float()
    post_N = 2 * torch.sigmoid(raw[..., n : 2 * n] * post_scale + base[n : 2 * n])
    logits_MN = (raw[..., 2 * n :] * comb_scale + base[2 * n :]).unflatten(-1, (n, n))
    comb_MN = doubly_stochastic(logits_MN, s.iterations, s.eps).to(state_ND.dtype)
    return post_N.to(y_D.dtype)[..., None] * y_D[..., None, :] + comb_MN.mT @ state_ND


def end(s: Streams, w: Weights, state_ND: Tensor) -> Tensor:
    """Return the input of the final norm, [..., D]."""
    raw = coefficients(s, w, "head_streams", state_ND)
    scale, base = w["head_streams.scale"].float(), w["head_streams.base"].float()
    return _mixture(s, raw, scale, base, state_ND)


def coefficients(s: Streams, w: Weights, role: str, state_ND: Tensor) -> Tensor:
    """Return the linear map of all streams of a token, normalised together, float32."""
    flat = standardise(state_ND.flatten(-2), Norm("rms", s.norm_eps))
    return F.linear(flat, w[f"{role}.fn"].float())


def doubly_stochastic(logits_MN: Tensor, iterations: int, eps: float) -> Tensor:
    """Normalise rows by softmax, then columns and rows in turn for `iterations` rounds; columns come last."""
    comb_MN = torch.softmax(logits_MN, dim=-1) + eps
    for turn in range(iterations):
        if turn:
            comb_MN = comb_MN / (comb_MN.sum(-1, keepdim=True) + eps)
        comb_MN = comb_MN / (comb_MN.sum(-2, keepdim=True) + eps)
    return comb_MN


def _mixture(s: Streams, raw_N: Tensor, scale: Tensor, base_N: Tensor, state_ND: Tensor) -> Tensor:
    pre_N = torch.sigmoid(raw_N * scale + base_N) + s.eps
    return (pre_N[..., None] * state_ND).sum(-2).to(state_ND.dtype)
