"""Lightning attention (Qin et al. 2024; MiniMax-01, section 2.2): linear attention with a fixed decay, block by block.

Shapes: W windows, S tokens of a window, H heads, C dimensions of a head, B tokens of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.models.mixers import Lightning
from moe_atlas.replay.mixers.attention import merge_heads
from moe_atlas.replay.primitives.feed_forward import ACTIVATIONS
from moe_atlas.replay.primitives.linear import Weights, linear
from moe_atlas.replay.primitives.norm import normalise


def lightning(m: Lightning, w: Weights, x_WSD: Tensor) -> Tensor:
    """Return the mixer output, [W, S, D], with the stored decays in the activation dtype, or derived decays."""
    qkv = ACTIVATIONS[m.activation](linear(w, "qkv_proj", x_WSD)).unflatten(-1, (m.heads, 3 * m.head_dim))
    q_WHSC, k_WHSC, v_WHSC = (part.transpose(1, 2) for part in qkv.split(m.head_dim, dim=-1))
    derived = decays(m, x_WSD.device)
    used = {role: w.get(role, decay).to(x_WSD.dtype) for role, decay in derived.items()}
    o_WSD = merge_heads(decayed_attention(q_WHSC, k_WHSC, v_WHSC, m.block, **used))
    gate = torch.sigmoid(linear(w, "output_gate", x_WSD))
    return linear(w, "mixer_out_proj", gate * normalise(o_WSD, m.norm, w["output_norm"]))


def decays(m: Lightning, device: torch.device) -> dict[str, Tensor]:
    """Return the decays of every head, float32: the rate per token, and the factors to both ends of a block."""
    head_H11 = torch.arange(1, m.heads + 1, device=device)[:, None, None]
    rate_H11 = m.slope * (1 / 2 ** (8 / m.heads)) ** head_H11
    place_B1 = torch.arange(1, m.block + 1, device=device)[:, None]
    between_BB = place_B1 - place_B1.T
    seen_HBB = torch.where(between_BB >= 0, -(rate_H11 * between_BB), float("-inf"))
    return {
        "slope_rate": rate_H11,
        "query_decay": torch.exp(-rate_H11 * place_B1),
        "key_decay": torch.exp(-rate_H11 * (m.block - place_B1)),
        "diagonal_decay": torch.exp(seen_HBB)[None],
    }


def decayed_attention(
    q_WHSC: Tensor,
    k_WHSC: Tensor,
    v_WHSC: Tensor,
    block: int,
    *,
    slope_rate: Tensor,
    query_decay: Tensor,
    key_decay: Tensor,
    diagonal_decay: Tensor,
) -> Tensor:
    """Return Σ_{s ≤ t} exp(−rate · (t − s)) · (q_t · k_s) · v_s of every head, [W, H, S, C]."""
    state_WHCC, outputs = None, []
    for q, k, v in zip(*(x.split(block, dim=2) for x in (q_WHSC, k_WHSC, v_WHSC)), strict=True):
        size = q.shape[2]
        within = (q @ k.transpose(-1, -2) * diagonal_decay[:, :, :size, :size]) @ v
        added = (k * key_decay[:, -size:]).transpose(-1, -2) @ v
        if state_WHCC is None:
            state_WHCC = torch.zeros_like(added)
        outputs.append((q * query_decay[:, :size]) @ state_WHCC + within)
        state_WHCC = state_WHCC * torch.exp(-slope_rate * size) + added
    return torch.cat(outputs, dim=2)
