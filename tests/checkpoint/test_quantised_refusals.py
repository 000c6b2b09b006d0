"""What a quantised checkpoint is refused for: one E_QUANT line with checkpoint, tensor or key, expected and found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moe_atlas.checkpoint.detect import MISSING
from moe_atlas.checkpoint.headers.refuse import shown
from moe_atlas.checkpoint.index import QUANTISATION, open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.errors import InputRefused
from scripts.oracle import tiny
from tests.auditing.test_quantised_copies import copies
from tests.checkpoint.test_recorded_formats import MODULE, recorded, settings
from tests.support import pairs

WEIGHT = f"{MODULE}.weight"


def stored(folder: Path, parts: dict, config: dict, beside: dict | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in parts.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if beside is not None:
        (folder / QUANTISATION).write_text(json.dumps(beside))
    return folder


def refused(folder: Path, place: str) -> str:
    """The one line of a refusal, which names the checkpoint and the tensor or key."""
    with pytest.raises(InputRefused) as caught:
        Reader(open_checkpoint(folder)).read(WEIGHT)
    line = str(caught.value)
    assert line.startswith(f"E_QUANT {folder}"), line
    assert f"'{shown(place)}'" in line, line
    assert "\n" not in line
    return line


def case(name: str) -> tuple[dict, dict]:
    """Stored tensors by name, and settings."""
    parts = {f"{MODULE}.{part}": tensor.clone() for part, tensor in recorded(name)[0].items()}
    return parts, settings(name)


GPTQ, AWQ, NVFP4, AFFINE = "gptq4-v1-asymmetric", "awq", "nvfp4", "affine4"


@pytest.mark.parametrize(
    ("name", "key", "value", "place"),
    [
        (GPTQ, "bits", 3, "bits = 3"),
        (GPTQ, "bits", None, "bits = None"),
        (GPTQ, "bits", 4.0, "bits = 4.0"),
        (GPTQ, "checkpoint_format", "gptq_p", "checkpoint_format = 'gptq_p'"),
        (GPTQ, "is_marlin_format", True, "is_marlin_format = True"),
        (GPTQ, "adapter", {"rank": 8}, "adapter = {'rank': 8}"),
        (GPTQ, "rotation", "hadamard", "rotation = 'hadamard'"),
        (GPTQ, "dynamic", {"-:(": {}}, "-:("),
        (GPTQ, "group_size", 0, "group_size = 0"),
        (GPTQ, "group_size", "32", "group_size = '32'"),
        (GPTQ, "dynamic", {"+:.*up_proj": {"bits": 8}}, "dynamic: '+:.*up_proj'"),
        (GPTQ, "dynamic", {".*up_proj": {"bits": 8}}, "dynamic: '.*up_proj'"),
        (GPTQ, "dynamic", {"-:.*up_proj": {}}, f"{MODULE}.qweight"),
        (AWQ, "bits", 8, "bits = 8"),
        (AWQ, "version", "gemv", "version = 'gemv'"),
        (AWQ, "version", "gemv_fast", "version = 'gemv_fast'"),
        (AWQ, "zero_point", False, "zero_point = False"),
        (AWQ, "modules_to_not_convert", ["mlp"], f"{MODULE}.qweight"),
        (GPTQ, "dynamic", 4, "dynamic = 4"),
        (AWQ, "modules_to_not_convert", [1], "modules_to_not_convert = [1]"),
        (NVFP4, "ignore", "lm_head", "ignore = 'lm_head'"),
        (NVFP4, "quant_algo", "NVFP4_AWQ", WEIGHT),
        (NVFP4, "quant_algo", "never", WEIGHT),
        (NVFP4, "ignore", ["model.layers.0*"], WEIGHT),
        (NVFP4, "exclude_modules", ["model.layers.0.mlp"], WEIGHT),
    ],
)
def test_settings_that_are_not_decoded_or_contradict_the_tensors(tmp_path, name, key, value, place):
    parts, config = case(name)
    config["quantization_config"][key] = value
    refused(stored(tmp_path, parts, config), place)


@pytest.mark.parametrize(
    ("own", "place"),
    [
        ({"bits": 3, "group_size": 32}, "bits = 3"),
        ({"bits": 4, "group_size": 32, "mode": "mxfp4"}, "mode = 'mxfp4'"),
        ({"bits": 4}, "group_size = None"),
        (False, WEIGHT),
    ],
)
def test_settings_of_one_module_of_mlx(tmp_path, own, place):
    parts, config = case(AFFINE)
    config["quantization"][MODULE] = own
    refused(stored(tmp_path, parts, config), place)


def without(part):
    return lambda parts: parts.pop(f"{MODULE}.{part}")


def cut(part):
    return lambda parts: parts.update({f"{MODULE}.{part}": parts[f"{MODULE}.{part}"][..., :-1]})


def cast(part, dtype):
    return lambda parts: parts.update({f"{MODULE}.{part}": parts[f"{MODULE}.{part}"].to(dtype)})


def add(name, tensor):
    return lambda parts: parts.update({name: tensor})


@pytest.mark.parametrize(
    ("name", "change", "place", "said"),
    [
        *((GPTQ, without(part), f"{MODULE}.{part}", "missing part") for part in ("scales", "qzeros", "g_idx")),
        *((GPTQ, cut(part), f"{MODULE}.{part}", "expected shape") for part in ("scales", "qzeros", "g_idx")),
        (GPTQ, without("qweight"), f"{MODULE}.g_idx", "extra part"),
        (GPTQ, cast("scales", torch.float64), f"{MODULE}.scales", "found F64"),
        (GPTQ, cast("qweight", torch.int64), f"{MODULE}.qweight", "expected I32, found I64"),
        (GPTQ, cut("qweight"), f"{MODULE}.qweight", "31 rows do not divide"),
        (GPTQ, add(WEIGHT, torch.zeros(32, 64)), WEIGHT, "stored twice"),
        *((AWQ, without(part), f"{MODULE}.{part}", "missing part") for part in ("scales", "qzeros")),
        *((AWQ, cut(part), f"{MODULE}.{part}", "expected shape") for part in ("scales", "qzeros")),
        (AWQ, add("lm_head.scales", torch.ones(2)), "lm_head.scales", "extra part"),
        (AWQ, add(f"{MODULE}.g_idx", torch.zeros(64)), f"{MODULE}.g_idx", "extra part"),
        *((NVFP4, without(part), f"{MODULE}.{part}", "missing part") for part in ("weight_scale", "weight_scale_2")),
        (NVFP4, cut("weight_scale"), f"{MODULE}.weight_scale", "expected shape [32, 4]"),
        (NVFP4, cast("weight_scale", torch.float32), f"{MODULE}.weight_scale", "expected F8_E4M3, found F32"),
        (NVFP4, add(f"{MODULE}.weight_scale_2", torch.ones(2)), f"{MODULE}.weight_scale_2", "expected shape [1]"),
        (NVFP4, cast("weight", torch.float32), WEIGHT, "expected U8, found F32"),
        (NVFP4, without("weight"), f"{MODULE}.weight_scale", "extra part"),
        (NVFP4, add("lm_head.pre_quant_scale", torch.ones(64)), "lm_head.pre_quant_scale", "not decoded"),
        ("fp8-blocks", cut("weight_scale"), f"{MODULE}.weight_scale", "expected shape [2, 2]"),
        *((AFFINE, without(part), f"{MODULE}.{part}", "missing part") for part in ("scales", "biases")),
        *((AFFINE, cut(part), f"{MODULE}.{part}", "expected shape [32, 2]") for part in ("scales", "biases")),
        (AFFINE, without("weight"), f"{MODULE}.biases", "extra part"),
    ],
)  # fmt: skip
def test_parts_that_are_missing_extra_or_wrong(tmp_path, name, change, place, said):
    parts, config = case(name)
    change(parts)
    assert said in refused(stored(tmp_path, parts, config), place)


@pytest.mark.parametrize(("name", "group"), [(GPTQ, 24), (AWQ, 24), (AFFINE, 24)])
def test_groups_that_do_not_divide(tmp_path, name, group):
    parts, config = case(name)
    config[next(iter(config))]["group_size"] = group
    values = f"{MODULE}.{'weight' if name == AFFINE else 'qweight'}"
    assert "64 columns do not divide into groups of 24" in refused(stored(tmp_path, parts, config), values)


def test_zero_points_and_groups_out_of_range(tmp_path):
    parts, config = case(GPTQ)
    parts[f"{MODULE}.qzeros"][1, 2] |= 0xF0
    line = refused(stored(tmp_path, parts, config), f"{MODULE}.qzeros")
    assert "expected a zero point from 0 to 15, found 16" in line
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"  # which stores a zero point as it is
    Reader(open_checkpoint(stored(tmp_path, parts, config))).read(WEIGHT)
    for wrong in (-1, 2):
        parts[f"{MODULE}.g_idx"][5] = wrong
        line = refused(stored(tmp_path, parts, config), f"{MODULE}.g_idx")
        assert f"expected a group of columns from 0 to 1, found {wrong}" in line


@pytest.mark.parametrize("method", sorted(MISSING))
def test_every_other_method_is_refused_by_name_with_what_is_missing(tmp_path, method):
    parts, config = case(NVFP4)
    config["quantization_config"] = {"quant_method": method}
    line = refused(stored(tmp_path, parts, config), f"quant_method = '{method}'")
    assert MISSING[method] in line


def test_bitsandbytes_is_known_by_its_older_configurations(tmp_path):
    parts, config = case(NVFP4)
    config["quantization_config"] = {"load_in_4bit": True}
    assert "nested codebooks" in refused(stored(tmp_path, parts, config), "quant_method = 'bitsandbytes'")


BESIDE = {
    "producer": {"name": "modelopt"},
    "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]},
}


def test_the_settings_of_modelopt_may_stand_in_a_file_of_their_own(tmp_path):
    parts, config = case(NVFP4)
    both = stored(tmp_path, parts, config, BESIDE)
    expected = Reader(open_checkpoint(both)).read(WEIGHT)
    alone = open_checkpoint(stored(tmp_path, parts, {}, BESIDE))
    assert torch.equal(Reader(alone).read(WEIGHT), expected)
    assert QUANTISATION in alone.files, "a change of it during the run would be noticed"
    other = BESIDE | {"quantization": {"quant_algo": "W4A16_NVFP4"}}
    line = refused(stored(tmp_path, parts, config, other), "quantization_config")
    assert "config.json and hf_quant_config.json, each time otherwise" in line


def test_algorithms_of_single_modules(tmp_path):
    parts, config = case(NVFP4)
    config["quantization_config"] |= {"quant_algo": "MIXED_PRECISION"}
    layers = {"model.layers.0.mlp": {"quant_algo": "NVFP4", "group_size": 16}}
    config["quantization_config"]["quantized_layers"] = layers
    assert torch.equal(
        Reader(open_checkpoint(stored(tmp_path, parts, config))).read(WEIGHT), recorded(NVFP4)[1]
    )
    layers[MODULE] = {"quant_algo": "FP8"}
    assert "expected F8_E4M3 or F8_E5M2, found U8" in refused(stored(tmp_path, parts, config), WEIGHT)
    del layers[MODULE], layers["model.layers.0.mlp"]
    assert "quantized_layers does not say how" in refused(stored(tmp_path, parts, config), MODULE)


def test_a_cache_that_is_quantised_alone_changes_nothing(tmp_path):
    said = {"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"}
    folder = stored(tmp_path, {WEIGHT: torch.ones(4, 4)}, {"quantization_config": said})
    assert not open_checkpoint(folder).encoded


def test_rules_of_gptq_that_leave_other_modules_out_change_nothing(tmp_path):
    parts, config = case(GPTQ)
    config["quantization_config"]["dynamic"] = {"-:.*mlp.gate$": {}}
    assert Reader(open_checkpoint(stored(tmp_path, parts, config))).read(WEIGHT).shape == (32, 64)


def test_mlx_copies_of_a_family_whose_norms_add_one_are_refused(tmp_path):
    base = tiny.save("qwen3_next", tmp_path / "base")
    head = {"lm_head.weight": torch.zeros(48, 4, dtype=torch.uint32)}
    head |= {f"lm_head.{part}": torch.ones(48, 1) for part in ("scales", "biases")}
    copy = pairs.write(tmp_path / "copy", pairs.read(base) | head, base)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization": {"bits": 4, "group_size": 32}}))
    with pytest.raises(InputRefused, match="hold other norm weights") as caught:
        tiny.open_tiny(copy)
    assert caught.value.code == "E_QUANT"


def test_an_expert_that_is_missing_from_a_stack_is_named(tmp_path):
    copy = copies(tmp_path, "qwen3_moe", "mlx")[1]
    tensors = pairs.read(copy)
    name = "model.layers.1.mlp.switch_mlp.up_proj"
    for part in ("weight", "scales", "biases"):
        tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"][:7].contiguous()
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(InputRefused) as caught:
        tiny.open_tiny(copy)
    assert "expected shape [8, 16, 32], found [7, 16, 32]" in str(caught.value)
