"""4-bit floats (E2M1), two to a byte with the low nibble first: MXFP4 and NVFP4.

MXFP4 (OCP Microscaling 1.0; gpt-oss, compressed-tensors): a power of two for 32 columns, W = value · 2^(s − 127),
exact in bfloat16. NVFP4: a float8 scale for 16 columns under one scale of the whole tensor, which compressed-tensors
divides by, W = value · (scale / global scale), and ModelOpt multiplies with, W = value · (scale · second scale).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.checkpoint.quantised.scales import as_float, largest, nonzero, spread

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST = 6.0
MX_COLUMNS, NV_COLUMNS = 32, 16


def unpack(packed: Tensor) -> Tensor:
    """Return the values of bytes [..., C/2], float32 with twice as many columns."""
    table = torch.tensor([*MAGNITUDES, *(-m for m in MAGNITUDES)])
    nibbles = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)
    return table[nibbles.int()]


def decode_mx(packed: Tensor, scale: Tensor) -> Tensor:
    """Return the weight, bfloat16 [..., R, C].

    Args:
        packed: bytes [..., R, C/2], or with the columns in groups [..., R, G, 16].
        scale: exponents, bytes [..., R, G].
    """
    if packed.dim() > scale.dim():
        packed = packed.flatten(-2)
    values = unpack(packed)
    return (values * spread(scale, (1, MX_COLUMNS), *values.shape[-2:])).to(torch.bfloat16)


def decode_nv(packed: Tensor, scale: Tensor, whole: Tensor, *, divides: bool) -> Tensor:
    """Return the weight, float32 [..., R, C].

    Args:
        packed: bytes [..., R, C/2].
        scale: float8 [..., R, G].
        whole: the scale of the whole tensor, one float32.
        divides: whether the scales of the groups are divided by `whole`; otherwise they are multiplied.
    """
    values, factor = unpack(packed), whole.float().reshape(1, 1)
    overall = as_float(scale) / factor if divides else as_float(scale) * factor
    return values * spread(overall, (1, NV_COLUMNS), *values.shape[-2:])


def nearest(values: Tensor) -> Tensor:
    """Return the nearest 4-bit floats; a tie goes to the even mantissa, and values beyond ±6 to ±6."""
    size = values.abs().clamp_max(LARGEST)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign(torch.round(size / step) * step, values)


def round_trip_mx(weight: Tensor) -> Tensor:
    """Return the weight as MXFP4 would store it, float32: exponent of the block's largest magnitude, less that of 4."""
    exponent = torch.floor(torch.log2(nonzero(largest(weight, (1, MX_COLUMNS))))) - 2
    scale = spread(torch.exp2(exponent.clamp(-127, 127)), (1, MX_COLUMNS), *weight.shape[-2:])
    return nearest(weight.float() / scale) * scale


def round_trip_nv(weight: Tensor) -> Tensor:
    """Return the weight as NVFP4 would store it, float32: float8 scales under a global scale that fills their range."""
    overall = 448.0 * LARGEST / nonzero(weight.float().abs().max())
    block = (overall * largest(weight, (1, NV_COLUMNS)) / LARGEST).to(torch.float8_e4m3fn).float()
    scale = spread(nonzero(block) / overall, (1, NV_COLUMNS), *weight.shape[-2:])
    return nearest(weight.float() / scale) * scale
