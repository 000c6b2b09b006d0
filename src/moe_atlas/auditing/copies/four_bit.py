"""The 4-bit copy of a checkpoint: every floating-point tensor rounded to small integers with a scale a group.

Legend: R rows, C columns, G groups of a row, K elements of a group.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from moe_atlas.models.spec import TensorRef

PIECE = 1 << 20  # elements that are rounded at a time, in float64


@dataclass(frozen=True)
class FourBitCopy:
    """Plain rounding to symmetric integers: a `Transform` that reads no data but the tensor itself.

    Each group of elements along the last axis has the scale max|x| / (2^(bits−1) − 1). No tensor is spared: embedding,
    head, router, biases and gains are rounded as the matrices are. The copy of an expert is the same in every stored
    layout, because the rounding follows the logical tensor.

    Attributes:
        bits: bits of an integer; 4 gives the integers −7 to 7.
        group: elements that share a scale; 32 as in GGUF's Q4_0. The last group of a row may be shorter.
    """

    bits: int = 4
    group: int = 32

    def __call__(self, tensor: Tensor, ref: TensorRef, rows: range | None = None) -> Tensor:
        """Return the rounded tensor in memory of its own; integers (tables of expert ids) are returned as they are."""
        return rounded(tensor, self.bits, self.group) if tensor.is_floating_point() else tensor

    def describe(self) -> dict[str, Any]:
        """Return what the copy is, as JSON values."""
        return asdict(self)


def rounded(tensor: Tensor, bits: int, group: int) -> Tensor:
    """Round a tensor of any shape to symmetric integers and back, in float64; return its dtype and shape.

    Ties go to the even integer. A group of zeros stays zero.
    """
    columns = tensor.shape[-1] if tensor.dim() else 1
    rows_RC = tensor.reshape(-1, columns)
    out_RC = torch.empty_like(rows_RC, memory_format=torch.contiguous_format)
    step = max(1, PIECE // max(1, columns))
    for piece_RC, target_RC in zip(rows_RC.split(step), out_RC.split(step), strict=True):
        target_RC.copy_(_rounded_rows(piece_RC.double(), bits, group))
    return out_RC.reshape(tensor.shape)


def _rounded_rows(rows_RC: Tensor, bits: int, group: int) -> Tensor:
    most, columns = 2 ** (bits - 1) - 1, rows_RC.shape[1]
    padded = torch.nn.functional.pad(rows_RC, (0, -columns % group))
    groups_RGK = padded.unflatten(1, (-1, group))
    scale_RG1 = groups_RGK.abs().amax(-1, keepdim=True) / most
    integers_RGK = (groups_RGK / scale_RG1.masked_fill(scale_RG1 == 0, 1.0)).round_()
    copy_RC: Tensor = integers_RGK.mul_(scale_RG1).flatten(1)[:, :columns]
    return copy_RC
