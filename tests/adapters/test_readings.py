"""How an adapter's tensors are read: in parts, unmerged, on a quantised base, and what its files are called."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_atlas.adapters.facts import matched_facts, same_name
from moe_atlas.checkpoint.digest import digest_checkpoint
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.errors import InputRefused, IntegrityError
from scripts.oracle import tiny
from tests.support import adapters, quantise

MODEL = "adapter_model.safetensors"
ALL = {
    "target_modules": ["q_proj", "embed_tokens", "lm_head"],
    "target_parameters": adapters.EXPERTS,
    "modules_to_save": ["norm"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("readings")
    base = tiny.save("qwen3_moe", root / "base", dtype=torch.bfloat16)
    adapters.train(base, root / "adapter", **ALL)
    gpt = tiny.save("gpt_oss", root / "gpt_oss")
    adapters.train(gpt, root / "gpt_oss-adapter", target_modules=[], target_parameters=adapters.EXPERTS)
    dora = {"target_modules": ["q_proj", "o_proj"], "use_dora": True}
    adapters.train(base, root / "dora", **dora)
    return root


@pytest.mark.parametrize(
    ("base", "adapter"), [("base", "adapter"), ("base", "dora"), ("gpt_oss", "gpt_oss-adapter")]
)
def test_a_part_of_a_tensor_is_that_part_of_the_whole(made, base, adapter):
    source = adapters.matched(made / base, made / adapter)
    for name, entry in source.derived.items():
        reader = Reader(source)
        whole = reader.read(name)
        if len(entry.shape) > 2:
            assert torch.equal(reader.read(name, 3), whole[3]), name
            assert torch.equal(reader.read(name, 3, range(2, 5)), whole[3, 2:5]), name
            assert torch.equal(reader.read(name, None, range(2, 5)), whole[2:5]), name
        else:
            assert torch.equal(reader.read(name, None, range(2, 5)), whole[2:5]), name
            assert torch.equal(reader.read(name, 4), whole[4]), name


def test_reading_leaves_the_digests_as_they_are(made):
    """The memory of the base's tensors is hashed after it was read, and must not be changed in place."""
    source = adapters.matched(made / "gpt_oss", made / "gpt_oss-adapter")
    expected, reader = digest_checkpoint(source), Reader(source)
    for name in source.logical:
        reader.read(name)
    assert reader.finish() == expected


def test_two_readers_hash_what_they_share_once(made):
    source = adapters.matched(made / "base", made / "adapter")
    base, tuned = Reader(source.base), Reader(source)
    tuned.share_hashes(base)
    expected = digest_checkpoint(source), digest_checkpoint(source.base)
    assert base.finish() == expected[1]
    read = tuned.bytes_read
    assert tuned.finish() == expected[0]
    assert tuned.bytes_read - read == sum(tensor.nbytes for tensor in source.adapter.tensors.values())


def test_a_live_adapter_is_the_sum_in_float32(made):
    source, base = (
        adapters.matched(made / "base", made / "adapter", reading="live"),
        load_file(made / "base/model.safetensors"),
    )
    factors = load_file(made / "adapter" / MODEL)
    name = "model.layers.0.self_attn.q_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    found = Reader(source).read(f"{name}.weight")
    assert found.dtype == torch.float32
    assert torch.equal(found, base[f"{name}.weight"].float() + b @ a * (6 / 4))
    assert {entry.dtype for name, entry in source.derived.items() if "norm" not in name} == {"F32"}


def test_a_live_adapter_of_tied_ends_is_refused(tmp_path):
    base = tiny.save("qwen3_moe-mixed-layers", tmp_path / "base")
    adapters.train(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(InputRefused, match="E_ADAPTER.*the base ties them.*--adapter-as merged"):
        adapters.matched(base, tmp_path / "adapter", reading="live")


def test_a_quantised_base_is_decoded_and_not_quantised_again(made, tmp_path):
    base = shutil.copytree(made / "base", tmp_path / "base")

    def encode(name, tensor):
        if not quantise.is_projection(name, tensor):
            return None
        values, scale = quantise.fp8_blocks(tensor, 16)
        return {name: values, f"{name}_scale_inv": scale}

    settings = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    quantise.rewrite(base, encode, settings)
    decoded = Reader(open_checkpoint(base))
    found = Reader(adapters.matched(base, made / "adapter"))
    factors = load_file(made / "adapter" / MODEL)
    name = "model.layers.1.self_attn.q_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = decoded.read(f"{name}.weight").float() + b @ a * (6 / 4)
    assert torch.equal(found.read(f"{name}.weight"), expected)
    stack = (
        "base_model.model.model.layers.1.mlp.experts.base_layer"  # the inner change is that of gate_up_proj
    )
    a = factors[f"{stack}.lora_A.weight"].reshape(8, 4, 32)
    b = factors[f"{stack}.lora_B.weight"].reshape(24, 4, 8)
    up = "model.layers.1.mlp.experts.5.up_proj.weight"
    expected = decoded.read(up).float() + b[12:, :, 5] @ a[5] * (6 / 4)
    assert torch.equal(found.read(up), expected)


def test_an_adapter_whose_b_is_zero_is_known(made, tmp_path):
    assert not matched_facts(adapters.matched(made / "base", made / "adapter"))["changes_nothing"]
    zero = adapters.train(made / "base", tmp_path / "zero", target_modules=["q_proj"])
    tensors = load_file(zero / MODEL)
    save_file({n: t if "lora_A" in n else torch.zeros_like(t) for n, t in tensors.items()}, zero / MODEL)
    source = adapters.matched(made / "base", zero)
    assert matched_facts(source)["changes_nothing"]
    name = next(iter(source.derived))
    assert torch.equal(Reader(source).read(name), Reader(source.base).read(name))


@pytest.mark.parametrize(
    ("named", "path", "same"),
    [
        ("Qwen/Qwen3-30B-A3B", "/data/Qwen3-30B-A3B", True),
        ("Qwen/Qwen3-30B-A3B", "/hub/models--Qwen--Qwen3-30B-A3B/snapshots/0ab1", True),
        ("/train/base.ckpt/", "base.ckpt", True),
        ("Qwen/Qwen3-30B-A3B", "/data/Qwen3-30B-A3B-Instruct", False),
        ("Qwen/Qwen3-30B-A3B", "/hub/models--Qwen--Qwen3-4B/snapshots/0ab1", False),
    ],
)
def test_a_base_is_recognised_by_its_name(named, path, same):
    assert same_name(named, path) is same


@pytest.mark.parametrize("name", [MODEL, "adapter_config.json"])
def test_a_file_that_changes_is_noticed(made, tmp_path, name):
    adapter = shutil.copytree(made / "adapter", tmp_path / "adapter")
    source = adapters.matched(made / "base", adapter)
    path = adapter / name
    path.write_bytes(path.read_bytes())
    with pytest.raises(IntegrityError, match=f"E_CHANGED.*{name}"):
        source.require_unchanged()


def test_files_beside_both_are_listed_and_the_adapters_come_first(made, tmp_path):
    base, adapter = (shutil.copytree(made / name, tmp_path / name) for name in ("base", "adapter"))
    for folder, text in ((base, "{}"), (adapter, '{"added": 1}')):
        (folder / "tokenizer_config.json").write_text(text)
    (base / "vocab.json").write_text("{}")
    source = adapters.matched(base, adapter)
    listed = {entry.file: entry.size for entry in source.beside()}
    assert listed["tokenizer_config.json"] == len('{"added": 1}')
    assert {"vocab.json", "README.md"} <= listed.keys()
    assert source.read_small("vocab.json", 99) == b"{}"
    assert source.read_small("tokenizer_config.json", 99) == b'{"added": 1}'
    first = source.beside()
    source.require_unchanged_beside(first)
    (adapter / "tokenizer_config.json").write_text("{ }")
    with pytest.raises(IntegrityError, match="tokenizer_config.json"):
        source.require_unchanged_beside(first)
