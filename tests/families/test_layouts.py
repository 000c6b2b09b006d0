"""One model in different clothes: config generations, prefixes, and fused or transposed experts."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file

from moe_atlas.loading.load import load, load_all
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.replay.model import Replay
from scripts.oracle import tiny


def logits(folder):
    spec, reader = tiny.open_tiny(folder)
    return Replay(spec, dtype=torch.float32).forward(reader, tiny.tokens())


def old_generation(config, tensors):
    """What transformers before version 5 wrote."""
    settings = config.pop("rope_parameters")
    config["rope_theta"] = settings.pop("rope_theta")
    kind = settings.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else settings | {"type": kind}
    config["torch_dtype"] = config.pop("dtype")
    if "num_local_experts" in config and config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")


@pytest.mark.parametrize("case", ["qwen3_moe", "deepseek_v3-yarn", "deepseek_v2-lite", "mixtral"])
def test_both_config_generations_mean_the_same(edited, case, tmp_path):
    new = logits(tiny.save(case, tmp_path / "new"))
    assert torch.equal(new, logits(edited(case, old_generation)))


def fuse(tensors, transposed):
    """Fuse split experts as [E, 2H, D] and [E, D, H], or transposed."""
    layers = {re.match(r"(.*experts)\.\d+\.", name)[1] for name in tensors if ".experts." in name}
    for prefix in layers:
        count = len(
            {name for name in tensors if re.fullmatch(re.escape(prefix) + r"\.\d+\.up_proj\.weight", name)}
        )
        taken = [
            [tensors.pop(f"{prefix}.{e}.{matrix}.weight") for matrix in ("gate_proj", "up_proj", "down_proj")]
            for e in range(count)
        ]
        first = torch.stack([torch.cat(matrices[:2]) for matrices in taken])
        last = torch.stack([matrices[2] for matrices in taken])
        for name, value in (("gate_up_proj", first), ("down_proj", last)):
            tensors[f"{prefix}.{name}"] = (value.transpose(1, 2) if transposed else value).contiguous()


@pytest.mark.parametrize("transposed", [False, True])
def test_fused_experts_are_the_same_model_under_the_same_names(edited, transposed, tmp_path):
    plain_folder = tiny.save("qwen3_moe", tmp_path / "split")
    plain, reader = tiny.open_tiny(plain_folder)
    fused, fused_reader = tiny.open_tiny(edited("qwen3_moe", lambda c, t: fuse(t, transposed)))
    for expert in range(8):
        ours, theirs = expert_refs(plain.layers[1].moe, expert), expert_refs(fused.layers[1].moe, expert)
        assert [ref.name for ref in ours] == [ref.name for ref in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(load(reader, one), load(fused_reader, other))
            assert load(fused_reader, other).is_contiguous()
        together = load_all(fused_reader, theirs)
        assert all(torch.equal(together[ref.role], load(reader, ref)) for ref in ours)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_part_of_a_multimodal_checkpoint(edited, prefix, tmp_path):
    def nest(config, tensors):
        text = dict(config)
        config.clear()
        config.update(model_type="some_vl", text_config=text, vision_config={"depth": 2}, image_token_id=3)
        for name in list(tensors):
            moved = (
                name.replace("model.", prefix, 1) if name.startswith("model.") else f"language_model.{name}"
            )
            tensors[moved if prefix != "model.language_model." or name != "lm_head.weight" else name] = (
                tensors.pop(name)
            )
        tensors["visual.patch_embed.weight"] = torch.zeros(3)

    plain = tiny.save("qwen3_moe", tmp_path / "plain")
    assert torch.equal(logits(plain), logits(edited("qwen3_moe", nest)))


def test_names_kinds_and_shapes_cover_the_checkpoint(tmp_path):
    folder = tiny.save("qwen2_moe", tmp_path / "q")
    stored = load_file(folder / "model.safetensors")
    spec, reader = tiny.open_tiny(folder)
    refs = [*spec.embed_refs, *spec.final_refs, *(ref for layer in spec.layers for ref in layer.refs)]
    refs += [ref for layer in spec.layers for e in range(8) for ref in expert_refs(layer.moe, e)]
    assert {ref.name for ref in refs} == stored.keys()
    assert all(tuple(stored[ref.name].shape) == ref.shape for ref in refs)
    kinds = {ref.name: ref.kind for ref in refs}
    assert kinds["model.layers.0.mlp.gate.weight"] == "router"
    assert kinds["model.layers.0.mlp.shared_expert_gate.weight"] == "shared_expert"
    assert kinds["model.layers.0.mlp.experts.3.down_proj.weight"] == "routed_expert"
    assert kinds["model.layers.0.self_attn.q_proj.bias"] == "attention"
    assert kinds["model.layers.0.post_attention_layernorm.weight"] == "norm"
    assert (kinds["model.norm.weight"], kinds["lm_head.weight"]) == ("norm", "head")
    assert kinds["model.embed_tokens.weight"] == "embedding"


def test_a_tied_head_is_the_embedding(tmp_path):
    spec, _ = tiny.open_tiny(tiny.save("qwen3_moe-mixed-layers", tmp_path / "tied"))
    head = next(ref for ref in spec.final_refs if ref.role == "head")
    assert spec.tied
    assert (head.name, head.kind) == (spec.embed_refs[0].name, "embedding")


def test_roles_are_unique_within_a_layer(tmp_path):
    spec, _ = tiny.open_tiny(tiny.save("deepseek_v3", tmp_path / "d"))
    for layer in spec.layers:
        roles = [ref.role for ref in layer.refs]
        assert len(roles) == len(set(roles))


def as_bailing(config, tensors):
    """A glm4_moe checkpoint as Ling 2.0 would store the same model."""
    count = config.pop("n_routed_experts")
    for key in ("head_dim", "use_qk_norm", "attention_bias", "n_shared_experts", "rope_parameters"):
        config.setdefault(key, None)
    turning = config.pop("rope_parameters")
    config |= {
        "model_type": "bailing_moe_v2", "num_experts": count, "num_shared_experts": config.pop("n_shared_experts"),
        "score_function": "sigmoid", "moe_router_enable_expert_bias": True, "use_qkv_bias": False, "use_bias": False,
        "rope_theta": turning["rope_theta"], "partial_rotary_factor": turning["partial_rotary_factor"],
    }  # fmt: skip
    del config["attention_bias"]
    renamed = {
        "model.embed_tokens": "model.word_embeddings",
        "self_attn.o_proj": "attention.dense",
        "self_attn.q_norm": "attention.query_layernorm",
        "self_attn.k_norm": "attention.key_layernorm",
        "gate.e_score_correction_bias": "gate.expert_bias",
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        parts = [tensors.pop(f"{prefix}self_attn.{part}_proj.weight") for part in ("q", "k", "v")]
        tensors[f"{prefix}attention.query_key_value.weight"] = torch.cat(parts)
    for name in list(tensors):
        for old, new in renamed.items():
            if old in name:
                tensors[name.replace(old, new)] = tensors.pop(name)


def test_ling_is_glm4_moe_under_other_names(edited, tmp_path):
    changes = {"attention_bias": False, "n_group": 4, "topk_group": 2}
    plain = tiny.save("glm4_moe", tmp_path / "plain", **changes)
    assert torch.equal(logits(plain), logits(edited("glm4_moe", as_bailing, **changes)))
