"""Mamba (Gu and Dao 2023, section 3), with Jamba's norms on step size, B and C; token by token.

Shapes: W windows, S tokens of a window, I channels, N dimensions of a channel's state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_atlas.models.mixers import Mamba1
from moe_atlas.replay.mixers.convolution import causal
from moe_atlas.replay.primitives.feed_forward import ACTIVATIONS, separate_linear
from moe_atlas.replay.primitives.linear import Weights, linear
from moe_atlas.replay.primitives.norm import normalise


def mamba1(m: Mamba1, w: Weights, x_WSD: Tensor) -> Tensor:
    """Return the mixer output, [W, S, D], before the residual is added."""
    dtype = x_WSD.dtype
    mixed, gate_WSI = linear(w, "in_proj", x_WSD).chunk(2, dim=-1)
    x_WSI = ACTIVATIONS[m.activation](causal(w, "conv1d", mixed.transpose(1, 2))).transpose(1, 2)
    parts = linear(w, "x_proj", x_WSI).split([m.rank, m.state_dim, m.state_dim], dim=-1)
    low, b_WSN, c_WSN = (
        normalise(part, m.norm, w[role])
        for part, role in zip(parts, ("dt_norm", "b_norm", "c_norm"), strict=True)
    )
    # Round the product before adding the bias.
    step_WSI = (w["dt_proj"].to(dtype) @ low.transpose(1, 2)).transpose(1, 2)
    step_WSI = F.softplus(step_WSI + w["dt_proj.bias"].to(dtype))
    rate_IN = -w["A_log"].to(dtype).float().exp()
    read_WSI = selective_scan(x_WSI, step_WSI, rate_IN, b_WSN, c_WSN)
    out_WSI = (read_WSI + x_WSI * w["D"].to(dtype).float()) * F.silu(gate_WSI)
    # The reference projects a transposed view, and rounds the product before it adds a bias.
    return (separate_linear if m.bias else linear)(w, "mixer_out_proj", out_WSI.to(dtype))


def selective_scan(x_WSI: Tensor, step_WSI: Tensor, rate_IN: Tensor, b_WSN: Tensor, c_WSN: Tensor) -> Tensor:
    """Return c_t · h_t with h_t = exp(rate · step_t) · h_{t−1} + step_t · b_t · x_t for every channel, [W, S, I].

    The state is float32; each read rounds it to the activation dtype, which is the dtype of `x_WSI`.
    """
    state_WIN = torch.zeros(len(x_WSI), *rate_IN.shape, dtype=torch.float32, device=x_WSI.device)
    reads = []
    for x_WI, step_WI, b_WN, c_WN in zip(
        *(part.unbind(1) for part in (x_WSI, step_WSI, b_WSN, c_WSN)), strict=True
    ):
        taken_WIN = step_WI[..., None] * b_WN[:, None].float() * x_WI[..., None].float()
        state_WIN = torch.exp(rate_IN * step_WI[..., None]) * state_WIN + taken_WIN
        reads.append((state_WIN.to(x_WSI.dtype) @ c_WN[..., None]).squeeze(-1))
    return torch.stack(reads, dim=1)
