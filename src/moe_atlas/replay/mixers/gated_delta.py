"""The gated delta rule (Yang et al. 2024, Gated Delta Networks), chunk by chunk.

Every head keeps a state matrix. At each token the matrix decays by exp(g), is updated with strength β so that it
returns v at the key k, and is read at the query q. One triangular solve gives all updates of a chunk (the UT transform
of section 3.3).

Legend: W windows, S tokens of a window, H value heads, K dimensions of a key, V of a value, C tokens of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_atlas.models.mixers import DeltaNet
from moe_atlas.replay.mixers.convolution import causal
from moe_atlas.replay.primitives.linear import Weights, linear
from moe_atlas.replay.primitives.norm import normalise

CHUNK = 64


def gated_delta(m: DeltaNet, w: Weights, x_WSD: Tensor) -> Tensor:
    """Return the mixer output, [W, S, D], before the residual is added."""
    qkv, z_WSHV, b_WSH, a_WSH = _grouped(m, w, x_WSD) if m.grouped else _separate(m, w, x_WSD)
    mixed = F.silu(causal(w, "conv1d", qkv.transpose(1, 2))).transpose(1, 2)
    keys = m.key_heads * m.key_dim
    q, k, v = mixed.split([keys, keys, m.value_heads * m.value_dim], dim=-1)
    repeats = m.value_heads // m.key_heads
    q, k = (part.unflatten(-1, (m.key_heads, -1)).repeat_interleave(repeats, dim=2) for part in (q, k))
    decay_WSH = -w["A_log"].float().exp() * F.softplus(a_WSH.float() + w["dt_bias"].to(x_WSD.dtype))
    out = delta_rule(q, k, v.unflatten(-1, (m.value_heads, -1)), decay_WSH, b_WSH.sigmoid())
    out = normalise(out.to(x_WSD.dtype), m.norm, w["output_norm"]) * F.silu(z_WSHV.float())
    return linear(w, "mixer_out_proj", out.to(x_WSD.dtype).flatten(2))


def _separate(m: DeltaNet, w: Weights, x_WSD: Tensor) -> tuple[Tensor, ...]:
    """Return q, k and v side by side, output gate, update strength and decay, each projected by its own matrix."""
    qkv, z, b, a = (linear(w, f"in_proj_{part}", x_WSD) for part in ("qkv", "z", "b", "a"))
    return qkv, z.unflatten(-1, (m.value_heads, -1)), b, a


def _grouped(m: DeltaNet, w: Weights, x_WSD: Tensor) -> tuple[Tensor, ...]:
    """Return the values of `_separate`, projected by two matrices whose rows are grouped by key head."""
    values = m.value_heads // m.key_heads
    width = values * m.value_dim
    by_head = linear(w, "in_proj_qkvz", x_WSD).unflatten(-1, (m.key_heads, -1))
    q, k, v, z = by_head.split([m.key_dim, m.key_dim, width, width], dim=-1)
    b, a = linear(w, "in_proj_ba", x_WSD).unflatten(-1, (m.key_heads, -1)).split([values, values], dim=-1)
    qkv = torch.cat((q.flatten(2), k.flatten(2), v.flatten(2)), dim=-1)
    return qkv, z.reshape(*z.shape[:2], m.value_heads, m.value_dim), b.flatten(2), a.flatten(2)


def delta_rule(q_WSHK: Tensor, k_WSHK: Tensor, v_WSHV: Tensor, decay_WSH: Tensor, beta_WSH: Tensor) -> Tensor:
    """Return the values that the queries read, float32 [W, S, H, V]; scale q and k to unit length, then q by K^-½.

    Args:
        q_WSHK: queries.
        k_WSHK: keys.
        v_WSHV: values.
        decay_WSH: logarithm of the decay factor of the state, at most 0.
        beta_WSH: strength of the update.
    """
    length = q_WSHK.shape[1]
    q, k, v, beta, decay = (
        chunks(x) for x in (q_WSHK, k_WSHK, v_WSHV, beta_WSH[..., None], decay_WSH[..., None])
    )
    q, k = unit(q) * q.shape[-1] ** -0.5, unit(k)
    passed, between = decays(decay.squeeze(-1))
    system = ((k * beta) @ k.transpose(-1, -2)) * between
    moved = solve(system, v * beta)
    recalled = solve(system, (k * beta) * passed.exp()[..., None])
    within = (q @ k.transpose(-1, -2)) * between
    q = q * passed.exp()[..., None]
    k = k * (passed[..., -1:] - passed).exp()[..., None]
    whole = passed[..., -1].exp()[..., None, None]
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    out = []
    for n in range(q.shape[2]):
        new = moved[:, :, n] - recalled[:, :, n] @ state
        out.append(q[:, :, n] @ state + within[:, :, n] @ new)
        state = state * whole[:, :, n] + k[:, :, n].transpose(-1, -2) @ new
    return torch.cat(out, dim=2)[:, :, :length].transpose(1, 2)


def decays(decay: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log decay since the chunk's start, [..., C], and the factor from token j to i ≥ j, [..., C, C]."""
    passed = decay.cumsum(-1)
    between = passed[..., :, None] - passed[..., None, :]
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=decay.device).triu(1)
    return passed, between.masked_fill(later, float("-inf")).exp()


def chunks(x: Tensor) -> Tensor:
    """Rearrange [W, S, H, X] to float32 [W, H, S/C, C, X], padded with zeros to whole chunks."""
    x = F.pad(x.transpose(1, 2).float(), (0, 0, 0, -x.shape[1] % CHUNK))
    chunked: Tensor = x.unflatten(2, (-1, CHUNK))
    return chunked


def unit(x: Tensor) -> Tensor:
    """Return the vectors scaled to unit length."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def solve(system: Tensor, right: Tensor) -> Tensor:
    """Return (I + strictly lower part of `system`)⁻¹ · right."""
    solved: Tensor = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    return solved
