"""What the registry refuses, and that its message would let the reader write the missing spec."""

from __future__ import annotations

import pytest
import torch

from moe_atlas.errors import Exit, InputRefused
from scripts.oracle import tiny


def refusal(folder):
    with pytest.raises(InputRefused) as caught:
        tiny.open_tiny(folder)
    assert caught.value.code == "E_FAMILY"
    assert caught.value.exit_code == Exit.REFUSED
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_architecture_is_named_with_the_known_ones(edited):
    message = refusal(edited("qwen3_moe", lambda c, t: c.update(model_type="grok_9")))
    assert "'grok_9'" in message
    assert "atlas families" in message
    assert "mlp.gate.weight [8, 32]" in message, "the reader must see what a spec would have to name"
    assert "mlp.experts.{e}.up_proj.weight [12, 32] × 8" in message


def test_layers_that_look_their_experts_up_need_their_table(edited):
    for kinds in (["hash_moe", "moe", "moe"], None):
        message = refusal(edited("deepseek_v4", lambda c, t, k=kinds: c.update(mlp_layer_types=k)))
        assert "model.layers.0.ffn.gate.tid2eid: missing tensor" in message
        assert "[48, 3]" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mlp_layer_types": ["moe", "dense", "moe"]}, "mlp_layer_types"),
        ({"mlp_layer_types": ["moe"]}, "mlp_layer_types"),
        ({"num_hash_layers": 2}, "num_hash_layers = 2"),
        ({"compress_ratios": [0, 4, 4]}, "compress_ratios = [0, 4, 4]"),
        ({"layer_types": None, "compress_ratios": [0, 4, 16]}, "compress_ratios of 16"),
        ({"layer_types": ["full_attention"] * 3}, "'full_attention'"),
        ({"layer_types": None}, "layer_types"),
        ({"qk_rope_head_dim": 4}, "qk_rope_head_dim = 4"),
        ({"o_groups": 3}, "o_groups"),
        (
            {"rope_parameters": None, "partial_rotary_factor": None, "qk_rope_head_dim": 16},
            "a head has 12 dimensions",
        ),
    ],
)
def test_a_configuration_of_deepseek_v4_that_contradicts_itself_is_refused(edited, changes, named):
    assert named in refusal(edited("deepseek_v4", lambda c, t: c.update(changes)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"enable_moe_block": False}, "no experts"),
        ({"hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input = 8"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers = 2"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all'"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types: 'sliding_attention' last"),
        ({"per_layer_config": {"1": {"head_dim": 12}}}, "layers of full_attention differ among themselves"),
        ({"per_layer_config": {"1": {"window": 3}, "3": {}}}, "window = 3"),
        ({"global_head_dim": 14}, "global_head_dim = 14"),
    ],
)
def test_forms_of_gemma_4_that_are_not_replayed_are_named(edited, changes, named):
    assert named in refusal(edited("gemma4_text-biased", lambda c, t: c.update(changes)))


@pytest.mark.parametrize(
    ("case", "changes", "missing"),
    [
        ("deepseek_v2", {"use_mla": False, "kv_lora_rank": None, "v_head_dim": 0}, "k_proj and v_proj"),
        ("nemotron_h", {"moe_latent_size": 16}, "fc1_latent_proj"),
    ],
)
def test_a_form_that_is_not_replayed_says_what_is_missing(edited, case, changes, missing):
    message = refusal(edited(case, lambda c, t: c.update(changes)))
    assert f"{next(iter(changes))} = {next(iter(changes.values()))!r}" in message
    assert missing in message


def test_a_share_of_the_rotation_that_the_reference_ignores_is_refused(edited):
    def change(config, tensors):
        config["rope_parameters"]["sliding_attention"]["partial_rotary_factor"] = 0.5

    assert "rope_parameters.sliding_attention.partial_rotary_factor" in refusal(edited("gemma4_text", change))


@pytest.mark.parametrize(
    ("key", "value"),
    [("logit_softcap", 30.0), ("swiglu_limit", 7.0), ("clip_qkv", 8), ("n_group", 4), ("use_qk_norm", False)],
)
def test_a_config_key_that_nothing_reads_is_refused(edited, key, value):
    message = refusal(edited("qwen3_moe", lambda c, t: c.update({key: value})))
    assert f"{key} = {value!r}" in message
    assert "moe_atlas/families/qwen3_moe.py" in message


def test_a_position_embedding_key_that_nothing_reads_is_refused(edited):
    message = refusal(edited("qwen3_moe", lambda c, t: c["rope_parameters"].update(temperature=2.0)))
    assert "temperature = 2.0" in message


def test_null_and_training_keys_are_not_refused(edited):
    tiny.open_tiny(edited("qwen3_moe", lambda c, t: c.update(some_future_key=None, router_aux_loss_coef=0.5)))


@pytest.mark.parametrize("key", ["norm_topk_prob", "num_experts_per_tok", "num_local_experts", "hidden_size"])
def test_a_missing_key_that_decides_routing_is_refused(edited, key):
    assert key.replace("_local", "") in refusal(edited("qwen3_moe", lambda c, t: c.pop(key)))


@pytest.mark.parametrize("key", ["norm_topk_prob", "routed_scaling_factor"])
def test_missing_sigmoid_routing_keys_are_refused(edited, key):
    assert key in refusal(edited("deepseek_v3", lambda c, t: c.pop(key)))


@pytest.mark.parametrize(
    ("case", "key", "value"),
    [
        ("deepseek_v3", "scoring_func", "softmax"),
        ("deepseek_v3", "topk_method", "greedy"),
        ("deepseek_v3", "moe_layer_freq", 2),
        ("deepseek_v2", "norm_topk_prob", True),
        ("qwen3_moe", "hidden_act", "mish"),
        ("qwen3_moe", "norm_topk_prob", 1),
        ("qwen3_moe", "num_experts_per_tok", "2"),
    ],
)
def test_a_value_the_family_does_not_compute_is_refused(edited, case, key, value):
    assert f"{key} = {value!r}" in refusal(edited(case, lambda c, t: c.update({key: value})))


def test_contradicting_aliases_are_refused(edited):
    message = refusal(edited("qwen3_moe", lambda c, t: c.update(num_experts=4)))
    assert "num_experts = 4" in message
    assert "num_local_experts = 8" in message


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.0.mlp.gate.e_score_correction_bias",
        "model.layers.0.mlp.experts.8.up_proj.weight",
        "model.layers.0.mlp.shared_expert.up_proj.weight",
        "model.extra_norm.weight",
    ],
)
def test_a_tensor_that_nothing_reads_is_refused(edited, name):
    assert name in refusal(edited("qwen3_moe", lambda c, t: t.update({name: torch.zeros(4)})))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.experts.7.down_proj.weight",
        "model.layers.0.self_attn.k_norm.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.embed_tokens.weight",
    ],
)
def test_a_missing_tensor_is_refused(edited, name):
    message = refusal(edited("qwen3_moe", lambda c, t: t.pop(name)))
    assert name in message
    assert "missing tensor" in message


def test_a_wrong_shape_names_both_shapes(edited):
    message = refusal(edited("qwen3_moe", lambda c, t: c.update(moe_intermediate_size=13)))
    assert "[13, 32]" in message
    assert "[12, 32]" in message


def test_prediction_layers_and_vision_towers_are_skipped_with_a_reason(edited):
    extra = {
        "model.layers.3.eh_proj.weight": "num_hidden_layers",
        "mtp.layers.0.input_layernorm.weight": "multi-token",
        "model.visual.blocks.0.attn.qkv.weight": "text model",
        "model.layers.0.self_attn.rotary_emb.inv_freq": "derived",
    }
    folder = edited("deepseek_v3", lambda c, t: t.update({name: torch.zeros(4) for name in extra}))
    skipped = {each.name: each.reason for each in tiny.open_tiny(folder)[0].skipped}
    assert skipped.keys() == extra.keys()
    for name, reason in extra.items():
        assert reason in skipped[name]


@pytest.mark.parametrize(
    "stamp",
    [
        {"unsloth_version": "2025.9.7", "unsloth_fixed": True},
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05},
        {
            "num_beams": 1,
            "length_penalty": 1.0,
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "output_scores": False,
        },
        {"add_cross_attention": False, "tie_encoder_decoder": False, "tf_legacy_loss": False},
        {
            "_attn_implementation_autoset": True,
            "_commit_hash": "abc",
            "_experts_implementation": "grouped_mm",
        },
        {"task_specific_params": {"x": 1}},
    ],
)
def test_what_common_tools_leave_in_a_configuration_changes_nothing(edited, stamp):
    spec = tiny.open_tiny(edited("qwen3_moe", lambda c, t: None))[0]
    stamped = tiny.open_tiny(edited("qwen3_moe", lambda c, t: c.update(stamp)))[0]
    assert spec.describe() == stamped.describe()


def test_a_head_does_not_rotate_more_than_itself(edited):
    message = refusal(edited("glm4_moe", lambda c, t: c["rope_parameters"].update(partial_rotary_factor=2.0)))
    assert "partial_rotary_factor = 2.0" in message


def test_experts_per_token_under_an_unknown_name_are_still_refused(edited):
    """`top_k` is how text is sampled; it does not stand for the router's."""

    def change(config, tensors):
        config["top_k"] = config.pop("num_experts_per_tok")

    assert "num_experts_per_tok" in refusal(edited("qwen3_moe", change))
