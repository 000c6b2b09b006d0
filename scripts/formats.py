"""Record what the libraries that write quantised formats write, and what they read out of it again.

The tests hold the decoders against the record. It takes `gptqmodel`, `autoawq`, `nvidia-modelopt` and `mlx`, which are
no dependencies of this project: install them into an environment of their own.

    python -m scripts.formats          writes tests/goldens/formats.safetensors
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RECORD = Path("tests/goldens/formats.safetensors")
ROWS, COLUMNS, GROUP = 32, 64, 32
LIBRARIES = ("gptqmodel", "autoawq", "nvidia-modelopt", "mlx")
Parts = dict[str, Tensor]


def weight(rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """A matrix whose groups have different ranges, float32 [R, C]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator) * torch.linspace(0.5, 2, columns)


def gptq(bits: int, *, symmetric: bool, ordered: bool, form: int) -> Parts:
    """As GPTQModel packs and reads it; `form` is the checkpoint format, 1 or 2."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    module = TorchLinear(bits, GROUP, symmetric, ordered, COLUMNS, ROWS, bias=False)
    linear = nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data = weight()
    order = torch.arange(COLUMNS) // GROUP
    if ordered:
        order = order[torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(1))]
    top, groups = 2**bits - 1, [linear.weight.data[:, order == g] for g in range(COLUMNS // GROUP)]
    high, low = (torch.stack([f(g, 1) for g in groups], 1) for f in (torch.amax, torch.amin))
    scales = ((high - low) / top).half().float()
    # The first format cannot hold a zero point of 0.
    zeros = (
        torch.full_like(scales, 2 ** (bits - 1)) if symmetric else torch.round(-low / scales).clamp(1, top)
    )
    module.pack_original(linear, scales, zeros, order.int())
    module.post_init()
    read = module.dequantize_weight().T
    if form == 1:
        module.qzero_format(format=2)
        convert_gptq_v2_to_v1_format_module(module, _Quantize(bits))
    names = ("qweight", "qzeros", "scales", "g_idx")
    return {name: getattr(module, name) for name in names} | {"read": read}


class _Quantize:
    """What GPTQModel's conversion asks of its configuration."""

    def __init__(self, bits: int) -> None:
        self.bits, self.pack_dtype = bits, torch.int32


def awq(group: int) -> Parts:
    """As AutoAWQ packs and reads its version gemm."""
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    linear = nn.Linear(COLUMNS, ROWS, bias=False)
    groups = weight().unflatten(1, (-1, group))
    high, low = groups.amax(2), groups.amin(2)
    scales = ((high - low) / 15).half().float()
    zeros = torch.round(-low / scales).clamp(0, 15)
    linear.weight.data = weight()
    by_group = {"scales": scales.T.contiguous(), "zeros": zeros.T.contiguous()}
    packed = WQLinear_GEMM.from_linear(linear, 4, group, **by_group)
    read = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, group).T
    return {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales, "read": read}


def nvfp4() -> Parts:
    """As ModelOpt packs and reads it."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    stored, scale, second = NVFP4QTensor.quantize(weight(), 16)
    read = stored.dequantize(torch.float32, scale=scale, double_scale=second, block_sizes={-1: 16})
    return {"weight": stored._quantized_data, "weight_scale": scale, "weight_scale_2": second, "read": read}


def mxfp8() -> Parts:
    """As ModelOpt packs and reads it."""
    from modelopt.torch.quantization.qtensor import MXFP8QTensor

    stored, scale = MXFP8QTensor.quantize(weight())
    read = stored.dequantize(torch.float32, scale=scale, block_sizes={-1: 32})
    return {"weight": stored._quantized_data, "weight_scale": scale, "read": read}


def mxfp4() -> Parts:
    """As ModelOpt packs and reads it."""
    from modelopt.torch.quantization.qtensor import MXFP4QTensor

    stored, scale = MXFP4QTensor.quantize(weight(), 32)
    read = stored.dequantize(torch.float32, scale=scale, block_sizes={-1: 32})
    return {"weight": stored._quantized_data, "weight_scale": scale.reshape(ROWS, -1), "read": read}


def fp8_blocks() -> Parts:
    """As ModelOpt packs and reads blocks of 128 by 128, of which the last are cut short."""
    from modelopt.torch.quantization.qtensor import FP8QTensor

    whole, sizes = weight(130, 144), {-1: 128, -2: 128}
    stored, scale = FP8QTensor.quantize(whole, block_sizes=sizes)
    read = stored.dequantize(torch.float32, scale=scale, block_sizes=sizes)
    return {"weight": stored._quantized_data, "weight_scale": scale[:, None, :, None], "read": read}


def affine(bits: int, group: int, *, experts: int = 0) -> Parts:
    """As MLX packs and reads it, a matrix or one for each expert."""
    import mlx.core as mx

    whole = torch.stack([weight() * (1 + e) for e in range(experts)]) if experts else weight()
    words, scales, biases = mx.quantize(mx.array(whole.numpy()), group, bits)
    read = mx.dequantize(words, scales, biases, group, bits)
    found = {"weight": words, "scales": scales, "biases": biases, "read": read}
    return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}


def records() -> Iterator[tuple[str, Parts]]:
    """Every recorded matrix by name."""
    for bits in (2, 4, 8):
        for form in (1, 2):
            yield f"gptq{bits}-v{form}", gptq(bits, symmetric=True, ordered=False, form=form)
            yield f"gptq{bits}-v{form}-asymmetric", gptq(bits, symmetric=False, ordered=True, form=form)
        yield f"affine{bits}", affine(bits, GROUP)
    yield "affine4-experts", affine(4, 64, experts=3)
    yield from {"awq": awq(GROUP), "awq-whole": awq(COLUMNS)}.items()
    yield from {"nvfp4": nvfp4(), "mxfp8": mxfp8(), "mxfp4": mxfp4(), "fp8-blocks": fp8_blocks()}.items()


def main() -> None:
    """Write the record."""
    torch.set_grad_enabled(False)
    found = {
        f"{name}.{part}": tensor.detach().contiguous()
        for name, parts in records()
        for part, tensor in parts.items()
    }
    save_file(found, RECORD, metadata={library: version(library) for library in LIBRARIES})
    print(f"{RECORD}: {len(found)} tensors, {RECORD.stat().st_size} bytes")


if __name__ == "__main__":
    main()
