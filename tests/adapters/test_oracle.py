"""Every tensor of a base with an adapter is the tensor that PEFT merges, bit for bit."""

from __future__ import annotations

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.loading.load import load_all
from moe_atlas.loading.registry import resolve
from moe_atlas.models.expert_refs import expert_refs
from scripts.oracle import tiny
from tests.support import adapters, pairs

MLP = ("gate_proj", "up_proj", "down_proj")

ATTENTION = ["q_proj", "v_proj", "o_proj"]
CASES = {
    "linear": ("qwen3_moe", {"target_modules": ATTENTION}),
    "rank-stabilised": ("qwen3_moe", {"target_modules": ATTENTION, "use_rslora": True}),
    "dora": ("qwen3_moe", {"target_modules": ATTENTION, "use_dora": True}),
    "patterns": (
        "qwen3_moe",
        {
            "target_modules": ATTENTION,
            "rank_pattern": {"layers.1.self_attn.v_proj": 5, r"layers\.1\.self_attn\.q_proj": 2, "v_proj": 3},
            "alpha_pattern": {"^model.layers.0.self_attn.o_proj": 11, "o_proj": 3},
        },
    ),
    "whole modules": ("qwen3_moe", {"target_modules": ["k_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "experts": ("qwen3_moe", {"target_modules": [], "target_parameters": adapters.EXPERTS}),
    "experts and router": (
        "qwen3_moe",
        {
            "target_modules": ATTENTION,
            "target_parameters": [*adapters.EXPERTS, "mlp.gate.weight"],
            "rank_pattern": {"mlp.experts.down_proj": 2},
            "use_rslora": True,
        },
    ),
    "down alone": ("qwen3_moe", {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    "ends": ("qwen3_moe", {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied": (
        "qwen3_moe-mixed-layers",
        {"target_modules": ["embed_tokens", "gate_proj", "up_proj", "down_proj"]},
    ),
    "biases": ("qwen3_moe-raw-weights", {"target_modules": ATTENTION, "bias": "lora_only"}),
    "renamed": (
        "mixtral",
        {"target_modules": ATTENTION, "target_parameters": [*adapters.EXPERTS, "mlp.gate.weight"]},
    ),
    "transposed": ("gpt_oss", {"target_modules": ATTENTION, "target_parameters": adapters.EXPERTS}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_changed_tensors_are_those_that_peft_merges(tmp_path, case, dtype):
    family, options = CASES[case]
    base = tiny.save(family, tmp_path / "base", dtype=dtype)
    adapter = adapters.train(base, tmp_path / "adapter", task_type="CAUSAL_LM", **options)
    merged = open_checkpoint(adapters.merge(base, adapter, tmp_path / "merged"))
    source = adapters.matched(base, adapter)
    assert source.derived
    assert_alike(source, merged)


def assert_alike(source, merged):
    found, expected = Reader(source), Reader(merged)
    for name in merged.tensors:
        own, other = found.read(name), expected.read(name)
        assert own.dtype == other.dtype, name
        assert torch.equal(own, other), (name, float((own - other).abs().max()))


@pytest.mark.parametrize("saved", [True, "auto"])
def test_a_grown_vocabulary_comes_with_the_adapter(tmp_path, saved):
    base = tiny.save("qwen3_moe", tmp_path / "base")
    model = adapters.load(base)
    model.resize_token_embeddings(50)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=saved)
    again = adapters.load(base)
    again.resize_token_embeddings(50)
    merged = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    source = adapters.matched(base, tmp_path / "adapter")
    assert_alike(source, open_checkpoint(tmp_path / "merged"))
    assert (resolve(source.base).vocab, resolve(source).vocab) == (48, 50)


def test_a_whole_tensor_of_a_wider_dtype_is_rounded_as_peft_rounds_it(tmp_path):
    base = tiny.save("qwen3_moe", tmp_path / "base", dtype=torch.bfloat16)
    options = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    adapter = adapters.train(base, tmp_path / "adapter", **options)
    tensors = load_file(adapter / "adapter_model.safetensors")
    head = tensors["base_model.model.lm_head.weight"].float()
    noise = 1e-3 * torch.randn(head.shape, generator=torch.Generator().manual_seed(2))
    save_file(
        tensors | {"base_model.model.lm_head.weight": head + noise}, adapter / "adapter_model.safetensors"
    )
    merged = open_checkpoint(adapters.merge(base, adapter, tmp_path / "merged"))
    assert_alike(adapters.matched(base, adapter), merged)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """One base with a tensor for each expert and matrix, and the same with two stacks a layer."""
    root = tmp_path_factory.mktemp("layouts")
    base = tiny.save("qwen3_moe", root / "split")

    def fuse(tensors):
        for layer in range(2):
            names = [[f"model.layers.{layer}.mlp.experts.{e}.{m}.weight" for e in range(8)] for m in MLP]
            gate, up, down = (torch.stack([tensors.pop(name) for name in found]) for found in names)
            stack = f"model.layers.{layer}.mlp.experts"
            tensors |= {f"{stack}.gate_up_proj": torch.cat([gate, up], 1), f"{stack}.down_proj": down}

    pairs.variant(base, root / "fused", fuse)
    return root


@pytest.mark.parametrize("kind", ["stacks", "single experts"])
def test_the_bases_layout_does_not_matter(layouts, tmp_path, kind):
    """Single experts: what PEFT saves with transformers 4, whose experts are modules of their own."""
    adapter = tmp_path / "adapter"
    if kind == "stacks":
        adapters.train(layouts / "split", adapter, target_modules=[], target_parameters=adapters.EXPERTS)
    else:
        adapters.train(layouts / "split", adapter, target_modules=["q_proj"])
        generator, tensors = (
            torch.Generator().manual_seed(3),
            load_file(adapter / "adapter_model.safetensors"),
        )
        for expert, matrix in ((2, "gate_proj"), (2, "up_proj"), (5, "down_proj")):
            name = f"base_model.model.model.layers.1.mlp.experts.{expert}.{matrix}"
            sizes = ((4, 12), (32, 4)) if matrix == "down_proj" else ((4, 32), (12, 4))
            for part, shape in zip("AB", sizes, strict=True):
                tensors[f"{name}.lora_{part}.weight"] = torch.randn(shape, generator=generator)
        save_file(tensors, adapter / "adapter_model.safetensors")
    split, fused = (adapters.matched(layouts / name, adapter) for name in ("split", "fused"))
    found, expected = Reader(fused), Reader(split)
    specs = [resolve(source) for source in (fused, split)]
    for layer in range(2):
        for expert in range(8):
            refs = [expert_refs(spec.layers[layer].moe, expert) for spec in specs]
            own, other = load_all(found, refs[0]), load_all(expected, refs[1])
            assert all(torch.equal(own[role], other[role]) for role in MLP)
    if kind == "single experts":
        name = "model.layers.1.mlp.experts.2.up_proj"
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        base = load_file(layouts / "split/model.safetensors")[f"{name}.weight"]
        assert torch.equal(expected.read(f"{name}.weight"), base + b @ a * (6 / 4))
