"""Kimi delta attention (Kimi Linear, 2025, section 3): the gated delta rule with a decay per key channel.

Legend: W windows, S tokens of a window, H heads, K dimensions of key and value, C tokens of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_atlas.models.mixers import KimiDelta
from moe_atlas.replay.mixers.convolution import causal
from moe_atlas.replay.mixers.gated_delta import CHUNK, chunks, solve, unit
from moe_atlas.replay.primitives.linear import Weights, linear
from moe_atlas.replay.primitives.norm import gain_float32, standardise


def kimi_delta(m: KimiDelta, w: Weights, x_WSD: Tensor) -> Tensor:
    """Return the mixer output, [W, S, D], before the residual is added."""

    def heads(x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(-1, (m.heads, m.dim))
        return split

    q, k, v = (
        heads(F.silu(causal(w, f"{p}_conv1d", linear(w, f"{p}_proj", x_WSD).transpose(1, 2))).transpose(1, 2))
        for p in ("q", "k", "v")
    )
    forget, gate = (linear(w, f"{p}_b_proj", linear(w, f"{p}_a_proj", x_WSD)) for p in ("f", "g"))
    step = F.softplus(heads(forget.float() + w["dt_bias"].to(x_WSD.dtype).float()))
    decay_WSHK = -w["A_log"].to(x_WSD.dtype).float().flatten().exp()[:, None] * step
    out = channel_delta_rule(q, k, v, decay_WSHK, linear(w, "b_proj", x_WSD).sigmoid())
    unit_out = standardise(out.to(x_WSD.dtype), m.norm)
    gained = gain_float32(unit_out, m.norm, w["output_norm"].to(x_WSD.dtype), None)
    return linear(w, "o_proj", (gained * heads(gate).float().sigmoid()).to(x_WSD.dtype).flatten(2))


def channel_delta_rule(
    q_WSHK: Tensor, k_WSHK: Tensor, v_WSHK: Tensor, decay_WSHK: Tensor, beta_WSH: Tensor
) -> Tensor:
    """Return the values that the queries read, float32 [W, S, H, K]; arguments as `delta_rule`, decay per channel."""
    length = q_WSHK.shape[1]
    q, k, v, decay, beta = (chunks(x) for x in (q_WSHK, k_WSHK, v_WSHK, decay_WSHK, beta_WSH[..., None]))
    q, k = unit(q) * q.shape[-1] ** -0.5, unit(k)
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    out = []
    for n in range(q.shape[2]):
        q_C, k_C, passed, strength = q[:, :, n], k[:, :, n], decay[:, :, n].cumsum(-2), beta[:, :, n]
        system = decayed_products(k_C * strength, k_C, passed)
        inverse = solve(system, torch.eye(CHUNK, device=q.device).expand_as(system))
        moved, recalled = inverse @ (v[:, :, n] * strength), inverse @ (k_C * strength * passed.exp())
        new = moved - recalled @ state
        out.append((q_C * passed.exp()) @ state + decayed_products(q_C, k_C, passed) @ new)
        last = passed[..., -1:, :]
        state = state * last.exp().transpose(-1, -2) + (k_C * (last - passed).exp()).transpose(-1, -2) @ new
    return torch.cat(out, dim=2)[:, :, :length].transpose(1, 2)


def decayed_products(a_WHCK: Tensor, b_WHCK: Tensor, passed_WHCK: Tensor) -> Tensor:
    """Return Σ_k a_ik · b_jk · exp(passed_ik − passed_jk) for j ≤ i, 0 for j > i, [W, H, C, C].

    The difference in the exponent is at most 0; the exponential of either term alone would overflow. The function
    computes one window at a time.
    """
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=a_WHCK.device).triu(1)[..., None]

    def window_products(a_HCK: Tensor, b_HCK: Tensor, passed_HCK: Tensor) -> Tensor:
        between = (passed_HCK[:, :, None] - passed_HCK[:, None]).masked_fill(later, float("-inf")).exp()
        return (a_HCK[:, :, None] * b_HCK[:, None] * between).sum(-1)

    return torch.stack([window_products(*window) for window in zip(a_WHCK, b_WHCK, passed_WHCK, strict=True)])
