"""Scales of blocks, and the exponent-only scale types.

Shapes: R rows, C columns of a matrix (any leading dimensions), G blocks along a dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_float(scale: Tensor) -> Tensor:
    """Return a scale in float32; a byte b is the power of two 2^(b − 127), and 255 is NaN (E8M0)."""
    return scale.view(torch.float8_e8m0fnu).float() if scale.dtype == torch.uint8 else scale.float()


def spread(scale_GG: Tensor, block: tuple[int, int], rows: int, columns: int) -> Tensor:
    """Return the scale of every element, float32 [..., R, C]; the last block of a dimension may be smaller.

    Args:
        scale_GG: scales [..., ceil(R/rows of a block), ceil(C/columns of a block)].
        block: rows and columns of a block; 0 means all.
        rows: number of rows R.
        columns: number of columns C.
    """
    scale = as_float(scale_GG).repeat_interleave(block[0] or rows, dim=-2)[..., :rows, :]
    return scale.repeat_interleave(block[1] or columns, dim=-1)[..., :columns]


def largest(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """Return the largest magnitude of every block, float32 [..., G, G]."""
    rows, columns = weight.shape[-2:]
    height, width = block[0] or rows, block[1] or columns
    padded: Tensor = torch.nn.functional.pad(weight.float().abs(), (0, -columns % width, 0, -rows % height))
    tiles: Tensor = padded.unflatten(-1, (-1, width)).unflatten(-3, (-1, height))
    return tiles.amax(dim=(-3, -1))


def nonzero(scale: Tensor) -> Tensor:
    """Return scales that can be divided by: 1 for a block of zeros."""
    return torch.where(scale > 0, scale, 1.0)
