"""Integers of 4 or 8 bits packed into 32-bit words, a scale (and a zero point) per group of columns.

Source: the pack-quantized format of compressed-tensors. Value j of a word is its bits [j·b, (j+1)·b), stored
with 2^(b−1) added; zero points are packed alike, but along the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.checkpoint.quantised.scales import largest, nonzero, spread


def unpack(words: Tensor, bits: int) -> Tensor:
    """Return the integers in the last dimension of `words` (int32), int32 with 32/bits times as many columns."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    values = (words[..., None] >> shifts) & ((1 << bits) - 1)
    return values.flatten(-2) - (1 << (bits - 1))


def decode(words: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, group: int) -> Tensor:
    """Return the weight (q − zero point) · scale, float32 [R, C].

    Args:
        words: int32 [R, C·bits/32].
        scale: [R, G].
        zero_point: int32 [R·bits/32, G]; None if the grid is symmetric.
        bits: bits of one value.
        group: columns that share a scale; 0 means all.
    """
    values = unpack(words, bits).float()
    rows, columns = values.shape
    if zero_point is not None:
        zero_RG = unpack(zero_point.T.contiguous(), bits).T[:rows]
        values = values - spread(zero_RG.float(), (1, group), rows, columns)
    return values * spread(scale, (1, group), rows, columns)


def round_trip(weight: Tensor, bits: int, group: int, *, symmetric: bool) -> Tensor:
    """Return the weight as this format would store it, float32; the grid spans the group's values and 0."""
    shape, half = weight.shape[-2:], 1 << (bits - 1)
    values = weight.float()
    if symmetric:
        scale = spread(nonzero(largest(values, (1, group)) / (half - 0.5)), (1, group), *shape)
        return torch.round(values / scale).clamp(-half, half - 1) * scale
    high, low = largest(values.clamp_min(0), (1, group)), -largest(values.clamp_max(0), (1, group))
    step = nonzero((high - low) / (2 * half - 1))
    zero = spread((-half - torch.round(low / step)).clamp(-half, half - 1), (1, group), *shape)
    scale = spread(step, (1, group), *shape)
    return ((torch.round(values / scale) + zero).clamp(-half, half - 1) - zero) * scale
