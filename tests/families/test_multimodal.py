"""The text parts of whole multimodal checkpoints, as the reference saves them, against the reference's own logits."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from moe_atlas.replay.model import Replay
from scripts.oracle import tiny

VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
CASES = {
    "qwen3_vl_moe": (
        tiny.BASE | tiny.QWEN | {
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [2, 1, 1]},
        },
        VISION | {"deepstack_visual_indexes": [0]},
    ),
    "qwen3_5_moe": (
        tiny.BASE | tiny.ROUTED | tiny.DELTA | {
            "num_hidden_layers": 3, "layer_types": tiny.LINEAR,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5,
            },
        },
        VISION,
    ),
    "llama4": (
        tiny.BASE | {
            "num_local_experts": 6, "num_experts_per_tok": 1, "intermediate_size": 12, "intermediate_size_mlp": 20,
            "head_dim": 8, "attention_chunk_size": 7, "interleave_moe_layer_step": 1,
        },
        {
            "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
    ),
    "gemma4": (
        tiny.BASE | tiny.GEMMA4 | {"pad_token_id": 0},
        {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2,
            "position_embedding_size": 16,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", CASES)
def test_text_part_of_a_multimodal_checkpoint(model_type, tmp_path):
    text, vision = CASES[model_type]
    text = {key: value for key, value in text.items() if value is not tiny.ABSENT}
    config = AutoConfig.for_model(
        model_type, text_config=text, vision_config=vision, tie_word_embeddings=False
    )
    model = AutoModelForImageTextToText.from_config(config).eval()
    tiny.randomise(model, 0)
    model.save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.set_experts_implementation("eager")
    tokens = tiny.tokens()
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
    spec, reader = tiny.open_tiny(tmp_path)
    found = Replay(spec, dtype=torch.float32).forward(reader, tokens)
    assert (found - expected).abs().max() < 1e-4
    assert expected.std() > 0.1
    assert {skipped.reason for skipped in spec.skipped} == {"not part of the text model"}
