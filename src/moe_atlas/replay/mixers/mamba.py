"""Mamba-2 (Dao and Gu 2024, Transformers are SSMs), chunk by chunk.

Legend: W windows, S tokens of a window, H heads, P dimensions of a head, N dimensions of the state, G groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_atlas.models.mixers import Mamba2
from moe_atlas.replay.mixers.convolution import causal
from moe_atlas.replay.mixers.gated_delta import chunks
from moe_atlas.replay.primitives.linear import Weights, linear
from moe_atlas.replay.primitives.norm import apply_gain, standardise


def mamba2(m: Mamba2, w: Weights, x_WSD: Tensor) -> Tensor:
    """Return the mixer output, [W, S, D], before the residual is added."""
    inner, shared = m.heads * m.head_dim, m.groups * m.state_dim
    gate, mixed, step = linear(w, "in_proj", x_WSD).split([inner, inner + 2 * shared, m.heads], dim=-1)
    mixed = F.silu(causal(w, "conv1d", mixed.transpose(1, 2))).transpose(1, 2)
    x, b, c = mixed.split([inner, shared, shared], dim=-1)
    b, c = (
        part.unflatten(-1, (m.groups, -1)).repeat_interleave(m.heads // m.groups, dim=2) for part in (b, c)
    )
    step_WSH = F.softplus(step + w["dt_bias"].to(step.dtype)).clamp_min(m.least_step)
    x_WSHP = x.unflatten(-1, (m.heads, -1)).float()
    out = state_space(x_WSHP, step_WSH.float(), -w["A_log"].float().exp(), b, c)
    out = out + w["D"].to(x_WSD.dtype)[:, None] * x_WSHP
    return linear(w, "mixer_out_proj", _gated_norm(m, w, out.flatten(2), gate).to(x_WSD.dtype))


def state_space(x_WSHP: Tensor, step_WSH: Tensor, rate_H: Tensor, b_WSHN: Tensor, c_WSHN: Tensor) -> Tensor:
    """Return Σ_{s ≤ t} (c_t · b_s) · exp(rate · steps from s to t) · step_s · x_s, float32 [W, S, H, P]."""
    length = x_WSHP.shape[1]
    x = chunks(x_WSHP * step_WSH[..., None])
    b, c, decay = chunks(b_WSHN), chunks(c_WSHN), chunks((rate_H * step_WSH)[..., None])
    passed = decay.squeeze(-1).cumsum(-1)
    within = (c @ b.transpose(-1, -2)) * segments(decay.squeeze(-1)).exp()
    c = c * passed.exp()[..., None]
    b = b * (passed[..., -1:] - passed).exp()[..., None]
    whole = passed[..., -1].exp()[..., None, None]
    state = x.new_zeros(*x.shape[:2], b.shape[-1], x.shape[-1])
    out = []
    for n in range(x.shape[2]):
        out.append(c[:, :, n] @ state + within[:, :, n] @ x[:, :, n])
        state = state * whole[:, :, n] + b[:, :, n].transpose(-1, -2) @ x[:, :, n]
    return torch.cat(out, dim=2)[:, :, :length].transpose(1, 2)


def segments(decay: Tensor) -> Tensor:
    """Return the summed decay after token j up to token i, −∞ for j > i; each sum is direct, never a difference."""
    size = decay.shape[-1]
    ones = torch.ones(size, size, dtype=torch.bool, device=decay.device)
    summands = decay[..., :, None].expand(*decay.shape, size).masked_fill(~ones.tril(-1), 0.0)
    return summands.cumsum(-2).masked_fill(~ones.tril(), float("-inf"))


def _gated_norm(m: Mamba2, w: Weights, out_WSD: Tensor, gate_WSD: Tensor) -> Tensor:
    """Gate the output, normalise each group of channels separately, and apply the gain."""
    gated = out_WSD.float() * F.silu(gate_WSD.float())
    unit = standardise(gated.unflatten(-1, (m.groups, -1)), m.norm).flatten(-2)
    return apply_gain(unit, m.norm, w["output_norm"].to(gate_WSD.dtype), None, out_WSD.dtype)
