"""Multi-head latent attention.

Legend: W windows, S tokens of a window, D model width, H heads, C dimensions of a head (nope and rope parts).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.models.mixers import Latent, Norm
from moe_atlas.replay.mixers.attention import attend, causal_mask, merge_heads, position_factor
from moe_atlas.replay.mixers.indexer import chosen_keys
from moe_atlas.replay.primitives.linear import Weights, linear
from moe_atlas.replay.primitives.norm import normalise
from moe_atlas.replay.primitives.rope import rotate, tables


def latent(m: Latent, w: Weights, x_WSD: Tensor) -> Tensor:
    """Return the attention output, [W, S, D], before the residual is added."""
    windows, length, _ = x_WSD.shape
    norm = Norm("rms", m.latent_eps)
    latent_WSR = None if m.q_rank is None else _latent_q(w, norm, x_WSD)
    q = linear(w, "q_proj", x_WSD) if latent_WSR is None else linear(w, "q_b_proj", latent_WSR)
    q_WHSC = (
        _scaled(q, m.q_multiplier).view(windows, length, m.heads, m.nope_dim + m.rope_dim).transpose(1, 2)
    )
    q_plain, q_turned = torch.split(q_WHSC, [m.nope_dim, m.rope_dim], dim=-1)

    compressed = linear(w, "kv_a_proj_with_mqa", x_WSD)
    kv_latent, k_turned = torch.split(compressed, [m.kv_rank, m.rope_dim], dim=-1)
    kv_latent = _scaled(normalise(kv_latent, norm, w["kv_a_layernorm"]), m.kv_multiplier)
    kv = linear(w, "kv_b_proj", kv_latent)
    kv_WHSC = kv.view(windows, length, m.heads, m.nope_dim + m.v_dim).transpose(1, 2)
    k_plain, v_WHSC = torch.split(kv_WHSC, [m.nope_dim, m.v_dim], dim=-1)

    k_turned = k_turned[:, None]
    if m.rope is not None:
        cos, sin = tables(m.rope, length, x_WSD.dtype, x_WSD.device)
        q_turned, k_turned = rotate(q_turned, cos, sin, m.rope), rotate(k_turned, cos, sin, m.rope)
    k_turned = k_turned.expand(-1, m.heads, -1, -1)
    q_WHSC = torch.cat((q_plain, q_turned), dim=-1)
    if m.temperature is not None:
        factor_S1 = position_factor(*m.temperature, 0.0, length, x_WSD.device)
        q_WHSC = q_WHSC * factor_S1.to(q_WHSC.dtype)
    k_WHSC = torch.cat((k_plain, k_turned), dim=-1)
    mask_SS = causal_mask(length, None, None, x_WSD.device)
    if m.indexer is not None and latent_WSR is not None and length > m.indexer.top_k:
        mask_SS = chosen_keys(m, w, x_WSD, latent_WSR, mask_SS)
    return linear(w, "o_proj", merge_heads(attend(q_WHSC, k_WHSC, v_WHSC, mask_SS, m.scale)))


def _latent_q(w: Weights, norm: Norm, x_WSD: Tensor) -> Tensor:
    return normalise(linear(w, "q_a_proj", x_WSD), norm, w["q_a_layernorm"])


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor
