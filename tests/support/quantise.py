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
