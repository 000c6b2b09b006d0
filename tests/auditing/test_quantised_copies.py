"""Whole audits of a quantised copy against the bfloat16 checkpoint that it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.cli import app
from scripts.oracle import tiny
from tests.support import pairs, quantise

CHANNELS = ("coordinate_drift_z", "boundary_drift", "transition_drift", "content_drift")
SIZES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"head_dim": 8, "moe_intermediate_size": 16, "intermediate_size": 48},
    "deepseek_v3": {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "moe_intermediate_size": 16, "intermediate_size": 48,
    },
    "gpt_oss": {"intermediate_size": 32},
}  # fmt: skip
Encode = Callable[[str, Tensor], tuple[quantise.Tensors, Tensor] | None]


def projections(encode: Encode) -> Encode:
    return lambda name, tensor: encode(name, tensor) if quantise.is_projection(name, tensor) else None


def nvfp4(name: str, tensor: Tensor) -> tuple[quantise.Tensors, Tensor]:
    values, scale, second, meaning = quantise.nvfp4(tensor)
    parts = {"": values, "_scale": scale, "_scale_2": second}
    return {f"{name}{part}": stored for part, stored in parts.items()}, meaning


def nvfp4_stacks(name: str, tensor: Tensor) -> tuple[quantise.Tensors, Tensor] | None:
    """ModelOpt's stacks of experts: turned, quantised and turned back."""
    if not name.endswith(("gate_up_proj", "down_proj")):
        return None
    values, scale, second, meaning = quantise.nvfp4(tensor.mT)
    parts = {
        "": values.mT,
        "_weight_scale": scale.mT,
        "_weight_scale_2": second,
        "_input_scale": torch.tensor(0.5),
    }
    return {f"{name}{part}": stored for part, stored in parts.items()}, meaning.mT


def fp8(name: str, tensor: Tensor) -> tuple[quantise.Tensors, Tensor]:
    scale = tensor.float().abs().max() / 448
    values = (tensor.float() / scale).to(torch.float8_e4m3fn)
    module = name.removesuffix(".weight")
    extra = {f"{module}.input_scale": torch.tensor(0.5)}
    return {name: values, f"{name}_scale": scale} | extra, values.double() * scale.double()


def mlx(name: str, tensor: Tensor) -> tuple[quantise.Tensors, Tensor] | None:
    """All matrices, the router in 8 bits."""
    if tensor.dim() < 2:
        return None
    return quantise.affine(name, tensor, 16, 8 if name.endswith("mlp.gate.weight") else 4)


MODELOPT = {"quant_method": "modelopt", "ignore": ["lm_head", "model.embed_tokens", "*.mlp.gate", "*router*"]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}
FORMATS: dict[str, tuple[Encode, dict[str, Any]]] = {
    "modelopt-fp8": (projections(fp8), {"quantization_config": MODELOPT | {"quant_algo": "FP8"}}),
    "modelopt-nvfp4": (projections(nvfp4), {"quantization_config": MODELOPT | {"quant_algo": "NVFP4"}}),
    "modelopt-stacks": (nvfp4_stacks, {"quantization_config": MODELOPT | {"quant_algo": "NVFP4"}}),
    "gptq": (projections(partial(quantise.gptq, group=16)), {"quantization_config": GPTQ}),
    "awq": (projections(partial(quantise.awq, group=16)), {"quantization_config": AWQ}),
    "mlx": (mlx, {"quantization": {"group_size": 16, "bits": 4}}),
}
PAIRS = [
    *((case, name) for case in ("qwen3_moe", "deepseek_v3") for name in FORMATS if name != "modelopt-stacks"),
    ("gpt_oss", "modelopt-stacks"),
]  # fmt: skip


def stacked(tensors: quantise.Tensors) -> quantise.Tensors:
    """The experts of every layer in one tensor for each matrix, as MLX names them."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for name in (name for name in tensors if ".experts.0." in name):
        one = [tensors[name.replace(".experts.0.", f".experts.{e}.")] for e in range(8)]
        found[name.replace(".experts.0.", ".switch_mlp.")] = torch.stack(one)
    return found


def unstacked(name: str, meaning: Tensor) -> quantise.Tensors:
    if ".switch_mlp." not in name:
        return {name: meaning}
    return {name.replace("switch_mlp", f"experts.{e}"): meaning[e] for e in range(len(meaning))}


def copies(folder: Path, case: str, form: str) -> tuple[Path, Path, Path]:
    """A bfloat16 checkpoint, its quantised copy, and the plain float32 checkpoint that the copy means."""
    base = tiny.save(case, folder / "base", dtype=torch.bfloat16, **SIZES[case])
    encode, settings = FORMATS[form]
    plain = pairs.read(base)
    stored, meant = {}, {name: tensor.float() for name, tensor in plain.items()}
    for name, tensor in (stacked(plain) if form == "mlx" else plain).items():
        found = encode(name, tensor)
        stored |= {name: tensor} if found is None else found[0]
        meant |= {} if found is None else {n: t.float() for n, t in unstacked(name, found[1]).items()}
    copy = written(folder / "copy", stored, base)
    config = json.loads((copy / "config.json").read_text()) | settings
    if form == "mlx":
        routers = [name.removesuffix(".weight") for name in plain if name.endswith("mlp.gate.weight")]
        finer = dict.fromkeys(routers, {"group_size": 16, "bits": 8})
        config["quantization_config"] = config["quantization"] = settings["quantization"] | finer
    (copy / "config.json").write_text(json.dumps(config))
    return base, copy, written(folder / "meant", meant, base)


def written(folder: Path, tensors: quantise.Tensors, like: Path) -> Path:
    return pairs.write(folder, {name: tensor.contiguous() for name, tensor in tensors.items()}, like)


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    return pairs.probe(tmp_path_factory.mktemp("copies"))


def channel(arrays, name):
    found = [values for key, values in arrays.items() if key.endswith(f".pair.{name}")]
    return np.concatenate(found) if found else None


@pytest.mark.parametrize(("case", "form"), PAIRS)
def test_a_copy_is_audited_as_the_plain_checkpoint_that_it_means(tmp_path, probes, case, form):
    base, copy, meant = copies(tmp_path, case, form)
    found, expected = (pairs.audited(base, tuned, probes, dtype="float32") for tuned in (copy, meant))
    for name, values in expected[1].items():
        assert np.array_equal(found[1][name], values, equal_nan=True), name
    price = channel(found[1], "content_quantisation")
    assert (price > 0).all(), "the experts are stored in two formats"
    assert (channel(found[1], "content_drift") < 4 * price).all()
    assert channel(found[1], "native_boundary_drift").any(), (
        "what is quantised before a router moves its choices"
    )
    assert channel(found[1], "boundary_drift").any() == (form == "mlx"), (
        "only MLX quantises the router itself"
    )
    routers = [row for row in found[0]["weights"]["tensors"] if row["class"] == "router"]
    assert {row["identical"] for row in routers} == {form != "mlx"}
    quantised = found[0]["checkpoints"]["tuned"]["quantised"]
    assert sum(form["tensors"] for form in quantised) == len(open_checkpoint(copy).encoded) > 0
    parts = {skipped["part"] for skipped in found[0]["checkpoints"]["tuned"]["skipped"]}
    assert parts == ({"activation_scales"} if form in ("modelopt-fp8", "modelopt-stacks") else set())


@pytest.mark.parametrize(("case", "form"), PAIRS)
def test_a_copy_against_itself_is_exactly_zero(tmp_path, probes, case, form):
    copy = copies(tmp_path, case, form)[1]
    facts, arrays = pairs.audited(copy, copy, probes)
    assert facts["identity"]["identical_checkpoints"] is True
    assert all(not channel(arrays, name).any() for name in CHANNELS)
    assert channel(arrays, "content_quantisation") is None


def test_the_commands_take_a_copy(tmp_path, probes):
    base, copy, _ = copies(tmp_path, "qwen3_moe", "modelopt-nvfp4")
    for command in (["inspect", str(copy)], ["plan", str(base), str(copy), "--probe", str(probes)]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert "nvfp4" in CliRunner().invoke(app, ["inspect", str(copy)]).output


def test_what_is_decoded_is_bounded_by_one_expert(tmp_path):
    """One expert of MLX's stack takes its own bytes, whatever the others take."""
    copy = copies(tmp_path, "qwen3_moe", "mlx")[1]
    reader = Reader(open_checkpoint(copy))
    name = "model.layers.0.mlp.switch_mlp.up_proj.weight"
    before = reader.bytes_read
    assert reader.read(name, 3).shape == (16, 32)
    parts = reader.checkpoint.encoded[name].parts.values()
    assert reader.bytes_read - before == sum(reader.checkpoint.tensors[part].nbytes for part in parts) // 8
