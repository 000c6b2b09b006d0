"""8-bit floats with a scale per block, row or tensor: W = float(values) · scale.

Sources: the `weight_dequant` kernel of DeepSeek-V3's repository (blocks of 128 × 128, the stored
`weight_scale_inv` multiplies), and the float-quantized format of compressed-tensors (`weight_scale`). The
reference's own loader derives the block from the shapes and is wrong where a dimension is no multiple of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.checkpoint.quantised.scales import as_float, largest, nonzero, spread

LARGEST = 448.0  # largest value of float8 e4m3


def decode(values: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """Return the weight, float32 [..., R, C].

    Args:
        values: float8 (or int8) [..., R, C].
        scale: one per block [..., G, G], with or without dimensions of 1, or per tensor with no such dimensions.
        block: rows and columns of a block; 0 means all.
    """
    rows, columns = values.shape[-2:]
    if block == (0, 0):
        factor = as_float(scale)
        return values.float() * factor.reshape(() if factor.numel() == 1 else (*values.shape[:-2], 1, 1))
    blocks = (-(-rows // (block[0] or rows)), -(-columns // (block[1] or columns)))
    return values.float() * spread(scale.reshape(*values.shape[:-2], *blocks), block, rows, columns)


def round_trip(weight: Tensor, block: tuple[int, int], *, exponents: bool) -> Tensor:
    """Return the weight as this format would store it, float32; scale = largest magnitude of the block / 448.

    Args:
        weight: [..., R, C].
        block: rows and columns of a block.
        exponents: whether the scales are powers of two, rounded up.
    """
    scale = largest(weight, block) / LARGEST
    if exponents:
        scale = torch.exp2(torch.ceil(torch.log2(nonzero(scale))))
    spread_RC = spread(nonzero(scale), block, *weight.shape[-2:])
    kept = (weight.float() / spread_RC).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return kept.float() * spread_RC
