"""Quantised tensors: decoded as their formats' own libraries decode them, recognised from headers, or refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

from moe_atlas.checkpoint.digest import digest_checkpoint
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.quantised import fp4, fp8, packed_integer
from moe_atlas.checkpoint.quantised.decode import round_trip
from moe_atlas.checkpoint.quantised.encoding import Encoding
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.errors import InputRefused
from moe_atlas.replay.model import Replay
from scripts.oracle import tiny
from tests.support import pairs, quantise

FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
SCALES = [torch.float32, torch.bfloat16, torch.float8_e8m0fnu, torch.uint8]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ALIGNED = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "moe_intermediate_size": 16,
}
"""Every matrix a whole number of blocks of 8: where the reference's own loader is right."""


def fp8_model(
    folder, case="deepseek_v3", dtype=torch.bfloat16, block=16, scale_dtype=torch.float32, **changes
):
    def encode(name, tensor):
        if not quantise.is_projection(name, tensor):
            return None
        values, scales = quantise.fp8_blocks(tensor, block, scale_dtype)
        return {name: values, f"{name}_scale_inv": scales}

    settings = FP8 | {"weight_block_size": [block, block]}
    return quantise.rewrite(tiny.save(case, folder, dtype=dtype, **changes), encode, settings)


@pytest.mark.parametrize("scale_dtype", SCALES)
@pytest.mark.parametrize(("rows", "columns", "block"), [(40, 24, 16), (24, 33, 16), (32, 48, 16), (5, 7, 16)])
def test_fp8_blocks_may_be_ragged(rows, columns, block, scale_dtype):
    values, scales = quantise.fp8_blocks(random(rows, columns), block, scale_dtype)
    decoded = fp8.decode(values, scales, (block, block))
    factors = 2.0 ** (scales.int() - 127) if scale_dtype == torch.uint8 else scales.float()
    for i in range(rows):
        for j in range(columns):
            assert decoded[i, j] == values[i, j].float() * factors[i // block, j // block]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_model_computes_what_transformers_computes(tmp_path, dtype):
    folder = fp8_model(tmp_path / "m", block=8, dtype=dtype, **ALIGNED)
    settings = FineGrainedFP8Config(weight_block_size=(8, 8), dequantize=True)
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", quantization_config=settings
    ).eval()
    reference.set_experts_implementation("eager")
    theirs = dict(reference.state_dict())
    reader = Reader(open_checkpoint(folder))
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    assert torch.equal(reader.read(name).to(dtype), theirs[name])
    expert = theirs["model.layers.1.mlp.experts.gate_up_proj"][3]
    ours = [reader.read(f"model.layers.1.mlp.experts.3.{m}_proj.weight").to(dtype) for m in ("gate", "up")]
    assert torch.equal(torch.cat(ours), expert)


def compressed(weights: dict, form: str, tensors: dict, shape) -> Tensor:
    """What compressed-tensors itself decodes, float32."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    return BaseCompressor.get_value_from_registry(form).decompress(tensors, scheme)["weight"]


@pytest.mark.parametrize(
    ("strategy", "scale", "block"),
    [("tensor", (1,), (0, 0)), ("channel", (24, 1), (1, 0)), ("block", (3, 4), (8, 8))],
)
def test_float_quantized(strategy, scale, block):
    values, scales = random(24, 32).to(torch.float8_e4m3fn), random(*scale, seed=1).abs()
    weights = {"num_bits": 8, "type": "float", "strategy": strategy}
    weights |= {"block_structure": [8, 8]} if strategy == "block" else {}
    parts = {"weight": values, "weight_scale": scales}
    assert torch.equal(
        fp8.decode(values, scales, block), compressed(weights, "float-quantized", parts, (24, 32))
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pack_quantized(bits, group, symmetric):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    half = 1 << (bits - 1)
    generator = torch.Generator().manual_seed(bits)
    integers = torch.randint(-half, half, (24, 64), dtype=torch.int8, generator=generator)
    groups = 64 // group if group else 1
    zeros = torch.randint(-half, half, (24, groups), dtype=torch.int8, generator=generator)
    scale = random(24, groups, seed=1).abs()
    parts = {
        "weight_packed": pack_to_int32(integers, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([24, 64]),
    }
    if not symmetric:
        parts["weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0)
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if group else "channel",
    }
    weights |= {"group_size": group} if group else {}
    ours = packed_integer.decode(parts["weight_packed"], scale, parts.get("weight_zero_point"), bits, group)
    assert torch.equal(ours, compressed(weights, "pack-quantized", dict(parts), (24, 64)))


def test_nvfp4_and_mxfp4_as_compressed_tensors_stores_them():
    packed = torch.randint(0, 256, (24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    scale, overall = (random(24, 4).abs() * 50).to(torch.float8_e4m3fn), torch.tensor([37.0])
    parts = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": overall}
    theirs = compressed(weights, "nvfp4-pack-quantized", parts, (24, 64))
    ours = fp4.decode_nv(packed, scale, overall, divides=True)
    assert (
        torch.equal(ours.to(theirs.dtype), theirs)
        or (ours - theirs.float()).abs().max() < 2**-7 * ours.abs().max()
    )
    exponents = torch.randint(
        110, 140, (24, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    weights = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
    parts = {"weight_packed": packed, "weight_scale": exponents}
    theirs = compressed(weights, "mxfp4-pack-quantized", parts, (24, 64))
    assert torch.equal(fp4.decode_mx(packed, exponents).to(theirs.dtype), theirs)


def gpt_oss(folder, dtype=torch.bfloat16):
    def encode(name, tensor):
        if not name.endswith(("gate_up_proj", "down_proj")):
            return None
        blocks, scales = quantise.mxfp4(tensor.transpose(1, 2))
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}

    plain = tiny.save("gpt_oss", folder, dtype=dtype, intermediate_size=32)
    return quantise.rewrite(plain, encode, {"quant_method": "mxfp4"})


def test_mxfp4_model_computes_what_transformers_computes(tmp_path):
    folder = gpt_oss(tmp_path / "m")
    tokens = tiny.tokens()
    settings = Mxfp4Config(dequantize=True)
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", quantization_config=settings
    ).eval()
    reference.set_experts_implementation("eager")
    expected = tiny.oracle(reference, tokens)
    spec, reader = tiny.open_tiny(folder)
    logits = Replay(spec, dtype=torch.bfloat16, router_arithmetic="native").forward(reader, tokens)
    assert torch.equal(logits, expected.logits)


@pytest.mark.parametrize(
    "encoding",
    [
        Encoding("fp8", (16, 16)),
        Encoding("fp8", (1, 0), exponents=True),
        Encoding("packed_integer", (1, 16), 4),
        Encoding("packed_integer", (1, 16), 4, symmetric=False),
        Encoding("mxfp4", (1, 32), 4, exponents=True),
        Encoding("nvfp4", (1, 16), 4),
    ],
)
def test_what_a_format_keeps_is_kept_again(encoding):
    """A round trip moves a weight by at most half a step, and moves what is on the grid hardly at all."""
    weight = random(40, 64)
    once = round_trip(encoding, weight)
    relative = float((once - weight).norm() / weight.norm())
    assert 0 < relative < {"fp8": 0.04, "packed_integer": 0.12, "mxfp4": 0.16, "nvfp4": 0.13}[encoding.kind]
    assert float((round_trip(encoding, once) - once).norm() / weight.norm()) < relative
    assert not round_trip(encoding, torch.zeros(40, 64)).any()


def test_scales_may_live_in_another_shard_and_are_part_of_the_digest(tmp_path):
    folder = fp8_model(tmp_path / "m")
    tensors = pairs.read(folder)
    ordered = dict(sorted(tensors.items(), key=lambda item: item[0].endswith("_scale_inv")))
    split = pairs.write(tmp_path / "split", ordered, folder, shards=3)
    one, other = (Reader(open_checkpoint(path)) for path in (folder, split))
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    assert one.checkpoint.encoded.keys() == other.checkpoint.encoded.keys()
    assert torch.equal(one.read(name), other.read(name))
    assert one.finish().sha256 == other.finish().sha256 == digest_checkpoint(open_checkpoint(folder)).sha256


def test_one_entry_of_a_fused_tensor_reads_its_own_bytes_only(tmp_path):
    reader = Reader(open_checkpoint(gpt_oss(tmp_path / "m")))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    whole = reader.read(name)
    before = reader.bytes_read
    assert torch.equal(reader.read(name, 3), whole[3])
    parts = reader.checkpoint.encoded[name].parts.values()
    assert reader.bytes_read - before == sum(reader.checkpoint.tensors[part].nbytes for part in parts) // 8


def packed(bits, group, symmetric):
    """A [40, 64] matrix of packed integers, as compressed-tensors stores it, and its group of the configuration."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    half, groups = 1 << (bits - 1), 64 // group if group else 1
    generator = torch.Generator().manual_seed(bits)
    integers, zeros = (
        torch.randint(-half, half, (40, columns), dtype=torch.int8, generator=generator)
        for columns in (64, groups)
    )
    parts = {"weight_packed": pack_to_int32(integers, bits), "weight_scale": random(40, groups, seed=1).abs()}
    parts["weight_shape"] = torch.tensor([40, 64])
    if not symmetric:
        parts["weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0)
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric}
    weights |= {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return parts, "pack-quantized", weights


def in_all_formats():
    """A [40, 64] matrix in every format and granularity, by name."""
    float8, halves = {"num_bits": 8, "type": "float"}, {"num_bits": 4, "type": "float"}
    values, words = random(40, 64).to(torch.float8_e4m3fn), torch.randint(0, 256, (40, 32), dtype=torch.uint8)
    found = {f"packed{n}": packed(*of) for n, of in enumerate([(4, 32, True), (4, 16, False), (8, 0, False)])}
    for strategy, scale in (("tensor", (1,)), ("channel", (40, 1)), ("block", (3, 4))):
        block = {"block_structure": [16, 16]} if strategy == "block" else {}
        parts = {"weight": values, "weight_scale": random(*scale, seed=2).abs()}
        found[f"float-{strategy}"] = parts, "float-quantized", float8 | {"strategy": strategy} | block
    nv = {"weight_packed": words, "weight_scale": (random(40, 4).abs() * 50).to(torch.float8_e4m3fn)}
    nv["weight_global_scale"] = torch.tensor([37.0])
    found["nv"] = nv, "nvfp4-pack-quantized", halves | {"strategy": "tensor_group", "group_size": 16}
    mx = {"weight_packed": words, "weight_scale": torch.randint(110, 140, (40, 2), dtype=torch.uint8)}
    found["mx"] = mx, "mxfp4-pack-quantized", halves | {"strategy": "group", "group_size": 32}
    return found


def test_some_rows_are_those_of_the_whole(tmp_path):
    """In every format, wherever they begin and end in the blocks and words that they share with others."""
    found = in_all_formats()
    groups = {
        name: {"targets": [name], "format": form, "weights": weights}
        for name, (_, form, weights) in found.items()
    }
    settings = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    tensors = {
        f"{name}.{part}": tensor.clone()
        for name, (parts, _, _) in found.items()
        for part, tensor in parts.items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    reader = Reader(open_checkpoint(tmp_path))
    assert len(reader.checkpoint.encoded) == len(found)
    for name in reader.checkpoint.encoded:
        whole = reader.read(name)
        assert whole.shape == (40, 64)
        for start, stop in ((0, 40), (0, 16), (16, 40), (5, 6), (7, 23), (39, 40)):
            rows = reader.read(name, rows=range(start, stop))
            assert rows.dtype == whole.dtype
            assert torch.equal(rows, whole[start:stop]), (name, start, stop)


def refused(folder, settings=None, change=None):
    config = json.loads((folder / "config.json").read_text())
    if settings is not None:
        config["quantization_config"] = settings
    if change is not None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputRefused) as caught:
        tiny.open_tiny(folder)
    assert caught.value.code == "E_QUANT"
    return str(caught.value)


SCALE = "model.layers.1.mlp.experts.0.up_proj.weight_scale_inv"


@pytest.mark.parametrize(
    ("settings", "change", "said"),
    [
        ({"quant_method": "quanto"}, None, "quant_method = 'quanto'"),
        ({"quant_method": "never_heard_of"}, None, "never_heard_of"),
        (FP8 | {"weight_block_size": [8, 16]}, None, "expected shape"),
        (FP8 | {"weight_block_size": "big"}, None, "weight_block_size"),
        (None, lambda t: t.update({SCALE: t[SCALE][:, :1].contiguous()}), "[1, 2]"),
        (None, lambda t: t.pop(SCALE), "stored as F8_E4M3"),
        (None, lambda t: t.update({SCALE: t[SCALE].to(torch.float64)}), "found F64"),
        (None, lambda t: t.update({SCALE.removesuffix("_scale_inv"): torch.zeros(12, 32)}), "found F32"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, settings, change, said):
    assert said in refused(fp8_model(tmp_path / "m"), settings, change)


def test_quantised_tensors_without_a_configuration_are_refused(tmp_path):
    folder = fp8_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "no quantization_config" in refused(folder)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"num_bits": 8, "type": "int", "strategy": "channel"}, "not decoded"),
        ({"num_bits": 3, "type": "int", "strategy": "group", "group_size": 32}, "3-bit"),
        (
            {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "actorder": "group"},
            "actorder",
        ),
    ],
)
def test_schemes_of_compressed_tensors_that_are_refused(tmp_path, group, said):
    form = "int-quantized" if group["num_bits"] == 8 else "pack-quantized"
    settings = {
        "quant_method": "compressed-tensors", "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": group}},
    }  # fmt: skip
    assert said in refused(tiny.save("qwen3_moe", tmp_path / "m"), settings)


def test_mixed_groups_of_compressed_tensors(tmp_path):
    """Attention in float8 by channel, experts in 4 bits, as recent Kimi checkpoints mix them."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    expected = {}

    def encode(name, tensor):
        module = name.removesuffix(".weight")
        if ".experts." in name:
            padded = torch.round(tensor.float() * 10).clamp(-8, 7).to(torch.int8)
            scale = torch.full((len(tensor), 1), 0.1)
            expected[name] = padded.float() * 0.1
            shape = torch.tensor(tensor.shape)
            return {
                f"{name}_packed": pack_to_int32(padded, 4),
                f"{name}_scale": scale,
                f"{name}_shape": shape,
            }
        if "self_attn" in module and tensor.dim() == 2:
            scale = tensor.float().abs().amax(1, keepdim=True) / 448
            values = (tensor.float() / scale).to(torch.float8_e4m3fn)
            expected[name] = values.float() * scale
            return {name: values, f"{name}_scale": scale}
        return None

    settings = {
        "quant_method": "compressed-tensors", "format": "mixed-precision",
        "config_groups": {
            "group_0": {"targets": ["re:.*self_attn.*"], "format": "float-quantized",
                        "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}},
            "group_1": {"targets": ["re:.*mlp.experts.*"], "format": "pack-quantized",
                        "weights": {"num_bits": 4, "type": "int", "strategy": "channel"}},
        },
    }  # fmt: skip
    folder = quantise.rewrite(
        tiny.save("qwen3_moe", tmp_path / "m", moe_intermediate_size=16), encode, settings
    )
    _, reader = tiny.open_tiny(folder)
    assert expected
    for name, weight in expected.items():
        assert torch.equal(reader.read(name), weight), name
