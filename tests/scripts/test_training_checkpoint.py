"""What the demo saves is an ordinary DeepSeek-V3 checkpoint: transformers loads it and computes the same."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from scripts.training.checkpoint import load, save
from scripts.training.model import Model, Shape

SMALL = Shape(
    hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
    q_lora_rank=16, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=16,
)  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """A model no parameter of which has its initial value, saved and read back as stored."""
    model = Model(SMALL, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in [*model.parameters(), *model.buffers()]:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    save(model, tmp_path / "base")
    return tmp_path / "base"


def test_transformers_computes_the_same_logits(saved):
    tokens = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(7))
    peer = AutoModelForCausalLM.from_pretrained(
        saved, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        ours, theirs = load(saved)(tokens), peer(tokens).logits
    assert torch.isfinite(theirs).all()
    assert (ours - theirs).abs().max() < 1e-4
    # The bias takes part: without it other experts are chosen and the logits differ by far more.
    for layer in peer.model.layers[1:]:
        layer.mlp.gate.e_score_correction_bias.zero_()
    with torch.no_grad():
        assert (ours - peer(tokens).logits).abs().max() > 1e-2


def test_the_files_are_those_of_a_release(saved):
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    shards = {path.name for path in saved.glob("*.safetensors")}
    assert len(shards) == 4
    assert set(index["weight_map"].values()) == shards
    assert "model.layers.1.mlp.experts.15.down_proj.weight" in index["weight_map"]
    assert "model.layers.0.mlp.gate_proj.weight" in index["weight_map"]


def test_saving_what_was_loaded_changes_no_byte(saved, tmp_path):
    save(load(saved), tmp_path / "again")
    for file in saved.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
