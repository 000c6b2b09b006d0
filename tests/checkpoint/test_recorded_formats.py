"""Formats against the libraries that write them: a record of what they wrote and read, and compressed-tensors' readers.

`python -m scripts.formats` makes the record anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from tests.support import quantise

RECORD = load_file(Path(__file__).parents[1] / "goldens" / "formats.safetensors")
MODULE = "model.layers.0.mlp.up_proj"
MODELOPT = {"nvfp4": "NVFP4", "mxfp8": "MXFP8", "mxfp4": "W4A8_MXFP4_FP8", "fp8-blocks": "fp8_pb_wo"}


def recorded(name: str) -> tuple[dict[str, Tensor], Tensor]:
    """The stored parts of one matrix, and what its library reads out of them."""
    parts = {key.rpartition(".")[2]: value for key, value in RECORD.items() if key.rpartition(".")[0] == name}
    return parts, parts.pop("read")


def settings(name: str) -> dict:
    """The configuration that goes with a record."""
    if name in MODELOPT:
        return {"quantization_config": {"quant_method": "modelopt", "quant_algo": MODELOPT[name]}}
    if name.startswith("affine"):
        return {"quantization": {"bits": int(name[6]), "group_size": 64 if "experts" in name else 32}}
    if name.startswith("awq"):
        group = -1 if "whole" in name else 32
        found = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
        return {"quantization_config": found}
    asymmetric, form = "asymmetric" in name, "gptq_v2" if "-v2" in name else "gptq"
    found = {"quant_method": "gptq", "bits": int(name[4]), "group_size": 32, "sym": not asymmetric}
    return {"quantization_config": found | {"desc_act": asymmetric, "checkpoint_format": form}}


def opened(folder: Path, parts: dict[str, Tensor], config: dict) -> Reader:
    save_file({f"{MODULE}.{part}": tensor for part, tensor in parts.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return Reader(open_checkpoint(folder))


NAMES = sorted({key.rpartition(".")[0] for key in RECORD})


@pytest.mark.parametrize("name", NAMES)
def test_what_a_library_wrote_reads_as_it_reads_it(tmp_path, name):
    parts, read = recorded(name)
    reader = opened(tmp_path, parts, settings(name))
    ours = reader.read(f"{MODULE}.weight")
    assert ours.shape == read.shape
    if name.startswith("affine"):
        assert torch.allclose(ours, read, rtol=0, atol=2**-23 * float(read.abs().max()))  # MLX fuses q·s + b
    else:
        assert torch.equal(ours.to(read.dtype), read)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_what_is_stored_decode_to_the_same(tmp_path, name):
    """Rows of a matrix, and one expert of several."""
    parts, read = recorded(name)
    reader = opened(tmp_path, parts, settings(name))
    whole = reader.read(f"{MODULE}.weight")
    if read.dim() == 3:
        assert torch.equal(reader.read(f"{MODULE}.weight", 1), whole[1])
        return
    for start, stop in ((0, 32), (0, 8), (8, 32), (3, 4), (5, 23), (31, 32)):
        rows = reader.read(f"{MODULE}.weight", rows=range(start, stop))
        assert torch.equal(rows, whole[start:stop]), (start, stop)


def test_nvfp4_and_awq_as_compressed_tensors_converts_them(tmp_path):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
    from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import ModelOptNvfp4Converter
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    group = {"strategy": "group", "group_size": 32}
    cases = {
        "nvfp4": (
            ModelOptNvfp4Converter(targets=["re:.*proj"]), "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        ),
        "awq": (
            AutoAWQConverter(group_size=32, targets=["re:.*proj"]), "pack-quantized",
            {"num_bits": 4, "type": "int", "symmetric": False} | group,
        ),
    }  # fmt: skip
    for name, (converter, form, weights) in cases.items():
        parts, _ = recorded(name)
        (tmp_path / name).mkdir()
        ours = opened(tmp_path / name, parts, settings(name)).read(f"{MODULE}.weight")
        stored = converter.process({f"{MODULE}.{part}": tensor.clone() for part, tensor in parts.items()})
        stored = {key.removeprefix(f"{MODULE}."): value for key, value in stored.items()}
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
        theirs = BaseCompressor.get_value_from_registry(form).decompress(stored, scheme)["weight"]
        again = converted(tmp_path / f"{name}-converted", stored, form, weights)
        for other in (theirs.float(), again):  # theirs is bfloat16, or float16
            assert (ours - other).abs().max() < {"nvfp4": 2**-7, "awq": 2**-10}[name] * ours.abs().max(), name


def converted(folder: Path, stored: dict[str, Tensor], form: str, weights: dict) -> Tensor:
    """What is read of a matrix as compressed-tensors stores it."""
    folder.mkdir()
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    said = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}
    return opened(folder, stored, {"quantization_config": said}).read(f"{MODULE}.weight")


def test_gptq_without_an_order_has_groups_of_consecutive_columns(tmp_path):
    parts, read = recorded("gptq4-v1")
    del parts["g_idx"]
    assert torch.equal(opened(tmp_path, parts, settings("gptq4-v1")).read(f"{MODULE}.weight").half(), read)
    one = {name: tensor[:1] if name != "qweight" else tensor for name, tensor in parts.items()}
    said = settings("gptq4-v1")
    said["quantization_config"]["group_size"] = -1
    first = opened(tmp_path, one, said).read(f"{MODULE}.weight").half()
    assert torch.equal(first[:, :32], read[:, :32])
    expected = (read[:, 32:].float() / parts["scales"][1, :, None] * parts["scales"][0, :, None]).half()
    assert torch.allclose(first[:, 32:], expected, rtol=2**-9)


def test_a_stack_of_float8_with_one_scale(tmp_path):
    values = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    save_file(
        {"experts.up_proj": values, "experts.up_proj_weight_scale": torch.tensor(0.25)},
        tmp_path / "model.safetensors",
    )
    said = {"quant_method": "modelopt", "quant_algo": "FP8"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    reader = Reader(open_checkpoint(tmp_path))
    assert torch.equal(reader.read("experts.up_proj"), values.float() / 4)
    assert torch.equal(reader.read("experts.up_proj", 2), values[2].float() / 4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_formula_in_float64(tmp_path, bits):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(bits))
    name = f"{MODULE}.weight"
    forms = {"gptq": quantise.gptq(name, weight, 32, bits), "affine": quantise.affine(name, weight, 32, bits)}
    forms |= {"awq": quantise.awq(name, weight, 32)} if bits == 4 else {}
    for name, (parts, meaning) in forms.items():
        (tmp_path / name).mkdir()
        said = {"gptq": f"gptq{bits}-v1-asymmetric", "affine": f"affine{bits}", "awq": "awq"}[name]
        stored = {key.removeprefix(f"{MODULE}."): value.contiguous() for key, value in parts.items()}
        ours = opened(tmp_path / name, stored, settings(said)).read(f"{MODULE}.weight")
        assert torch.equal(ours, meaning.float()), name
