"""A whole Qwen3-Omni: its thinker is replayed; its talker, which has a router too, is compared by its weights."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, Qwen3OmniMoeForConditionalGeneration

from moe_atlas.api import AuditOptions, audit
from scripts.oracle import tiny
from scripts.oracle.parity import replayed
from tests.support import pairs
from tests.support.multimodal import judged_by_weights, same_as_class

TEXT = tiny.BASE | tiny.QWEN | {
    "head_dim": 8, "num_hidden_layers": 3, "mlp_only_layers": [1],
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 500.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True,
        "interleaved": True,
    },
}  # fmt: skip
SMALL = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
PARTS = {
    "thinker_config": {
        "text_config": TEXT,
        "vision_config": {
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
        },
        "audio_config": {
            "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 8,
            "downsample_hidden_size": 8, "output_dim": 32, "num_hidden_layers": 1,
        },
    },
    "talker_config": {
        "text_config": tiny.BASE | SMALL | {
            "moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
            "shared_expert_intermediate_size": 10, "head_dim": 8,
        },
        "code_predictor_config": SMALL | {"vocab_size": 16, "hidden_size": 32, "head_dim": 8, "num_code_groups": 2},
        "thinker_hidden_size": 32, "num_code_groups": 2, "spatial_merge_size": 2,
    },
    "code2wav_config": SMALL | {
        "codebook_size": 8, "hidden_size": 16, "codebook_dim": 8, "latent_dim": 8, "decoder_dim": 16,
        "upsample_rates": [2], "upsampling_ratios": [2], "num_quantizers": 2,
    },
}  # fmt: skip
"""The keys of a tiny model, all of its parts in it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a whole model in each dtype."""
    root = tmp_path_factory.mktemp("omni")
    model = Qwen3OmniMoeForConditionalGeneration._from_config(AutoConfig.for_model("qwen3_omni_moe", **PARTS))
    tiny.randomise(model.eval(), 3)
    model.save_pretrained(root / "float32")
    halved = Qwen3OmniMoeForConditionalGeneration.from_pretrained(root / "float32", dtype=torch.bfloat16)
    halved.save_pretrained(root / "bfloat16")
    return {torch.float32: root / "float32", torch.bfloat16: root / "bfloat16"}


def thinker(folder, dtype):
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    model.set_experts_implementation("eager")
    return model.thinker.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_thinker_is_replayed_as_its_class_computes_it(whole, dtype):
    model = thinker(whole[dtype], dtype)
    same_as_class(model, whole[dtype], dtype, "qwen3_omni_moe_text", {0, 2})


def test_a_thinker_that_is_saved_alone_is_the_same(whole, tmp_path):
    thinker(whole[torch.float32], torch.float32).save_pretrained(tmp_path)
    specs = [tiny.open_tiny(folder) for folder in (tmp_path, whole[torch.float32])]
    one, other = (replayed(spec, reader, tiny.tokens(), torch.float32, "native")[0] for spec, reader in specs)
    assert torch.equal(one, other)


def test_every_part_around_the_thinker_is_skipped_as_one(whole):
    spec, _ = tiny.open_tiny(whole[torch.float32])
    assert {skipped.part for skipped in spec.skipped} == {"modalities"}
    named = {skipped.name.split(".")[0] for skipped in spec.skipped}
    assert named == {"talker", "code2wav", "thinker"}
    assert any(skipped.name == "talker.model.layers.0.mlp.gate.weight" for skipped in spec.skipped)


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        (None, "pass"),
        ("talker.model.layers.0.mlp.gate.weight", "fail"),
        ("talker.model.layers.0.mlp.experts.3.up_proj.weight", "fail"),
        ("code2wav.code_embedding.weight", "fail"),
        ("thinker.audio_tower.conv2d1.weight", "fail"),
    ],
)
def test_a_part_that_no_token_of_text_passes_is_judged_by_its_weights(whole, tmp_path, name, verdict):
    def damaged(tensors):
        return tensors | ({name: torch.zeros_like(tensors[name])} if name else {})

    base = whole[torch.float32]
    tuned = pairs.variant(base, tmp_path / "tuned", damaged)
    probes = pairs.probe(tmp_path / "probe", policy=pairs.SAME)
    made = audit(
        base, tuned, probes, receipt=tmp_path / "receipt.json", options=AuditOptions(dtype="float32")
    )
    judged_by_weights(made, verdict)
