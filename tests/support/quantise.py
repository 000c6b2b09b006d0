"""Writing tiny checkpoints in quantised formats, with the encoders written out plainly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_atlas.checkpoint.quantised.fp4 import MAGNITUDES

Tensors = dict[str, Tensor]


def rewrite(
    folder: Path, encode: Callable[[str, Tensor], Tensors | None], settings: dict[str, Any] | None
) -> Path:
    """Replace the tensors that `encode` returns something for, and add a quantization_config."""
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors):
        parts = encode(name, tensors[name])
        if parts is not None:
            del tensors[name]
            tensors |= parts
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if settings is not None:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def is_projection(name: str, tensor: Tensor) -> bool:
    """What releases quantise: matrices other than router, embedding and head."""
    return tensor.dim() == 2 and "proj" in name


def fp8_blocks(weight: Tensor, block: int, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """float8 values and their scales, block by block."""
    rows, columns = weight.shape
    grid = (-(-rows // block), -(-columns // block))
    values, scales = torch.empty(rows, columns, dtype=torch.float8_e4m3fn), torch.empty(grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            place = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            scale = weight[place].float().abs().max() / 448
            if scale_dtype in (torch.float8_e8m0fnu, torch.uint8):
                scale = 2 ** torch.ceil(torch.log2(scale))
            scale = scale.to(torch.bfloat16).float() if scale_dtype == torch.bfloat16 else scale
            values[place] = (weight[place].float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            scales[i, j] = scale
    if scale_dtype == torch.uint8:
        return values, scales.to(torch.float8_e8m0fnu).view(torch.uint8)
    return values, scales.to(scale_dtype)


def mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks [..., G, 16] and exponents [..., G] of a tensor [..., 32·G]."""
    groups = weight.float().unflatten(-1, (-1, 32))
    exponent = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
    scaled = groups / 2 ** exponent[..., None]
    size = (scaled.abs()[..., None] - torch.tensor(MAGNITUDES)).abs().argmin(-1)
    code = (size + 8 * (scaled < 0)).to(torch.uint8)
    return code[..., 0::2] | (code[..., 1::2] << 4), (exponent + 127).to(torch.uint8)


def words(integers: Tensor, bits: int) -> Tensor:
    """Integers packed into int32 along the last dimension, the first of them lowest."""
    inside = 32 // bits
    packed = torch.zeros(*integers.shape[:-1], integers.shape[-1] // inside, dtype=torch.int64)
    for place in range(inside):
        packed |= integers[..., place::inside].long() << (bits * place)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def integers(weight: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integers [..., R, C], float16 scales and zero points [..., R, G] of groups of consecutive columns."""
    groups, top = weight.float().unflatten(-1, (-1, group)), 2**bits - 1
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scale = ((high - low) / top).half()
    zero = torch.round(-low / scale.float()).clamp(1, top)
    found = torch.round(groups / scale.float()[..., None]) + zero[..., None]
    return found.clamp(0, top).flatten(-2), scale, zero


def gptq(name: str, weight: Tensor, group: int, bits: int = 4) -> tuple[Tensors, Tensor]:
    """The parts of the first format, with columns in the order of a calibration, and what they mean (float64)."""
    rows, columns = weight.shape
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
    found, scale, zero = integers(weight[:, order], group, bits)
    stored, group_C = torch.empty_like(found), torch.empty(columns, dtype=torch.int32)
    stored[:, order], group_C[order] = found, (torch.arange(columns) // group).int()
    meaning = torch.empty(rows, columns, dtype=torch.float64)
    for c in range(columns):
        g = int(group_C[c])
        meaning[:, c] = scale[:, g].double() * (stored[:, c].double() - zero[:, g].double())
    module = name.removesuffix(".weight")
    return {
        f"{module}.qweight": words(stored, bits).T,
        f"{module}.qzeros": words(zero.T - 1, bits),
        f"{module}.scales": scale.T,
        f"{module}.g_idx": group_C,
    }, meaning


def awq(name: str, weight: Tensor, group: int) -> tuple[Tensors, Tensor]:
    """The parts of version gemm, and what they mean (float64)."""
    found, scale, zero = integers(weight, group, 4)
    meaning = torch.empty(weight.shape, dtype=torch.float64)
    for c in range(weight.shape[1]):
        meaning[:, c] = scale[:, c // group].double() * (found[:, c] - zero[:, c // group]).double()
    places = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    turned = [of.T.unflatten(1, (-1, 8))[..., places].flatten(1) for of in (found, zero)]
    module = name.removesuffix(".weight")
    return {
        f"{module}.qweight": words(turned[0], 4),
        f"{module}.qzeros": words(turned[1], 4),
        f"{module}.scales": scale.T,
    }, meaning


def affine(name: str, weight: Tensor, group: int, bits: int = 4) -> tuple[Tensors, Tensor]:
    """MLX's parts of a matrix or of one for each expert, and what they mean (float64)."""
    groups, top = weight.float().unflatten(-1, (-1, group)), 2**bits - 1
    offset = groups.amin(-1).to(torch.bfloat16)
    scale = ((groups.amax(-1) - offset.float()) / top).to(torch.bfloat16)
    found = torch.round((groups - offset.float()[..., None]) / scale.float()[..., None]).clamp(0, top)
    meaning = (found.double() * scale.double()[..., None] + offset.double()[..., None]).flatten(-2)
    module = name.removesuffix(".weight")
    packed = words(found.flatten(-2), bits).view(torch.uint32)
    return {f"{module}.weight": packed, f"{module}.scales": scale, f"{module}.biases": offset}, meaning


def nvfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ModelOpt's bytes [..., R, C/2], float8 scales [..., R, G], the second scale, and what they mean (float64).

    ModelOpt rounds the product of the scales to float32.
    """
    groups = weight.float().unflatten(-1, (-1, 16))
    second = groups.abs().max() / (6 * 448)
    scale = (groups.abs().amax(-1) / (6 * second)).clamp(2**-9, 448).to(torch.float8_e4m3fn)
    scaled = groups / (scale.float() * second)[..., None]
    size = (scaled.abs()[..., None] - torch.tensor(MAGNITUDES)).abs().argmin(-1)
    sign = torch.where(scaled < 0, -1.0, 1.0).double()
    meaning = torch.tensor(MAGNITUDES).double()[size] * sign * (scale.float() * second).double()[..., None]
    code = (size + 8 * (scaled < 0)).to(torch.uint8).flatten(-2)
    return code[..., 0::2] | (code[..., 1::2] << 4), scale, second, meaning.flatten(-2)
