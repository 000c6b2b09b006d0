"""Causal depthwise convolutions.

Legend: W windows, S tokens of a window, D channels, N width of the kernel.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from moe_atlas.models.mixers import ShortConv
from moe_atlas.replay.primitives.linear import Weights, linear


def causal(w: Weights, role: str, x_WDS: Tensor) -> Tensor:
    """Convolve each channel with its own kernel [1, N] over the current token and the N − 1 tokens before it."""
    kernel, bias = w[role].to(x_WDS.dtype), w.get(f"{role}.bias")
    bias = None if bias is None else bias.to(x_WDS.dtype)
    padded = F.conv1d(x_WDS, kernel, bias, padding=kernel.shape[-1] - 1, groups=len(kernel))
    return padded[..., : x_WDS.shape[-1]]


def short_conv(m: ShortConv, w: Weights, x_WSD: Tensor) -> Tensor:
    """Return the mixer output, [W, S, D], before the residual is added."""
    before, after, value = linear(w, "in_proj", x_WSD).transpose(-1, -2).chunk(3, dim=-2)
    mixed_WDS = after * causal(w, "conv1d", before * value)
    return linear(w, "mixer_out_proj", mixed_WDS.transpose(-1, -2).contiguous())
