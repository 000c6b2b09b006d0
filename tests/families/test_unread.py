"""Keys that nothing reads: which of them change no number, and what happens to the others."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from types import SimpleNamespace

import pytest
from transformers import CONFIG_MAPPING, PreTrainedConfig

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.configuration import unread
from moe_atlas.configuration.accepting import parse_accepted
from moe_atlas.configuration.config import Config
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.loading.registry import read_config
from scripts.oracle import tiny
from tests.families.test_defaults import CLASSES, STAND_IN, completed, starting

NO_NUMBER = {
    "attention_dropout": "training",
    "attn_pdrop": "training",
    "emb_pdrop": "training",
    "resid_pdrop": "training",
    "projector_dropout": "training",
    "initializer_range": "training",
    "router_aux_loss_coef": "training",
    "max_position_embeddings": "a cache; families with a scaling that needs it read it",
    "output_router_logits": "what is returned",
    "output_attentions": "what is returned",
    "output_hidden_states": "what is returned",
    "return_dict": "what is returned",
    "num_logits_to_keep": "what is returned",
    "use_cache": "what is kept",
    "do_sample": "how text is generated",
    "patch_size": "how a picture is cut",
    "use_mamba_kernels": "which kernel",
    "_attn_implementation": "which kernel",
    "pad_token_id": "one row of the embedding that training leaves alone",
    "image_token_id": "where a picture goes",
    "video_token_id": "where a picture goes",
    "mtp_hybrid_override_pattern": "of a module that is not replayed",
}
"""Keys that the class's own source reads and that are inert by name nevertheless, with the reason."""
VALUES = (False, True, 0, 1, 1.0, 50, "x")


def read(values, accepted=()):
    return read_config(SimpleNamespace(label="tuned", config=values, logical={}), parse_accepted(accepted))


def refusal(values, accepted=()):
    with pytest.raises(InputRefused) as caught:
        read(values, accepted)
    assert caught.value.code == "E_FAMILY"
    return str(caught.value)


@pytest.fixture(scope="module")
def seen():
    """Keys that each family reads, or declares inert with a reason, over every configuration of the tests."""
    found: dict[str, set[str]] = {}
    original, starts = Config.refuse_unread, starting().values()
    with pytest.MonkeyPatch.context() as patch:

        def watched(self, model, accepted, **where):
            found.setdefault(kind, set()).update(self._read)
            return original(self, model, accepted, **where)

        patch.setattr(Config, "refuse_unread", watched)
        for start in starts:
            kind = start["model_type"]
            read(start)
    return found


def keys_of_class(kind):
    """Keys that the source of a class reads from its configuration, without those of vision and audio parts."""
    own = CONFIG_MAPPING[kind]
    module = importlib.import_module(own.__module__)
    source = inspect.getsource(importlib.import_module(own.__module__.replace("configuration_", "modeling_")))
    keys = set(re.findall(r"config\.(\w+)", source))
    keys |= set(re.findall(r"getattr\((?:self\.)?config, \"(\w+)\"", source))
    keys |= set(re.findall(r"kwargs\.(?:get|pop)\(\"(\w+)\"", inspect.getsource(module)))
    others = [
        other().to_dict().keys()
        for _, other in inspect.getmembers(module, inspect.isclass)
        if issubclass(other, PreTrainedConfig) and other not in (own, PreTrainedConfig)
    ]
    keys -= {key for other in others for key in other} - own().to_dict().keys()
    aliases = own.attribute_map | {value: key for key, value in own.attribute_map.items()}
    return {(key, aliases.get(key, key)) for key in keys}


@pytest.mark.parametrize("kind", CLASSES)
def test_what_a_class_reads_is_never_inert_by_its_shape(kind, seen):
    if kind not in seen:
        pytest.skip("no configuration of this family")
    model = read(next(start for start in starting().values() if start["model_type"] == kind))[1].model
    for names in keys_of_class(STAND_IN.get(kind, kind)):
        if not seen[kind].isdisjoint(names) or names[0] in NO_NUMBER:
            continue
        open_to = [value for value in VALUES if unread.changes_nothing(names[0], value, model)]
        assert open_to == [], f"{kind} reads {names[0]}, and it is inert when it says {open_to}"


@pytest.mark.parametrize(
    ("case", "keys"),
    [
        ("qwen3_moe", {"qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0}),
        (
            "qwen3_moe",
            {"unsloth_fixed": True, "unsloth_version": "2026.1", "_attn_implementation_autoset": True},
        ),
        ("qwen3_moe", {"_experts_implementation": "eager", "_commit_hash": "ab", "tf_legacy_loss": False}),
        (
            "qwen3_moe",
            {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "num_beams": 4, "forced_eos_token_id": 3},
        ),
        ("qwen3_moe", {"embedding_multiplier": 1, "routed_scaling_factor": 1.0, "logits_scaling": 1.0}),
        ("qwen3_moe", {"per_layer_hidden_size": 0, "attention_window": 0, "num_dense_layers": 0}),
        ("qwen3_moe", {"mtp_num_hidden_layers": 1, "use_mtp": True, "mlp_bias": False, "use_mla": False}),
        ("qwen3_next", {"use_sliding_window": False}),
        ("dots1", {"scoring_func": "noaux_tc"}),
        (
            "glm_moe_dsa",
            {"indexer_rope_interleave": True, "moe_layer_freq": 1, "moe_router_dtype": "float32"},
        ),
        ("granitemoehybrid", {"init_method": "mup", "normalization_function": "rmsnorm"}),
        ("longcat_flash", {"nextn_use_scmoe": False, "router_dtype": "float32"}),
        ("exaone_moe", {"first_last_k_dense_replace": 1}),
        ("llama4_text", {"nope_layer_interval": 3}),
        ("nemotron_h", {"rope_theta": 10000, "partial_rotary_factor": 1.0}),
        ("deepseek_v3", {"use_expert_bias_anew": None, "add_cross_attention": False, "pruned_heads": {}}),
    ],
)
def test_a_key_that_changes_nothing_is_no_reason_to_refuse(case, keys):
    start = starting()[case]
    assert not keys.keys() & start.keys()
    if case == "exaone_moe":
        keys = keys | {"is_moe_layer": [kind == "sparse" for kind in start["mlp_layer_types"]]}
    assert read(start | keys) == read(start)


@pytest.mark.parametrize(
    ("case", "key", "value"),
    [
        ("qwen3_moe", "use_qk_norm", False),
        ("qwen3_moe", "qkv_bias", True),
        ("qwen3_moe", "use_rope", False),
        ("qwen3_moe", "use_rmsnorm", False),
        ("qwen3_moe", "use_causal_mask", False),
        ("qwen3_moe", "use_moe", False),
        ("qwen3_moe", "attention_multiplier", 1.0),
        ("qwen3_moe", "rope_scaling_factor", 1.0),
        ("qwen3_moe", "shared_expert_intermediate_size", 12),
        ("qwen3_moe", "routed_scaling_factor", 2.0),
        ("qwen3_moe", "use_parallel_block", True),
        ("qwen3_moe", "rotary_interleaved", False),
        ("qwen3_moe", "embedding_multiplier", True),
        ("qwen3_moe", "use_moe_aux_loss_free", True),
        ("qwen3_moe", "logit_softcap", 30.0),
        ("mixtral-window", "use_swa", False),
        ("mixtral-window", "attention_window", 0),
        ("mixtral", "moe_intermediate_size", 0),
        ("mixtral", "attention_factor", 1.0),
        ("mixtral", "has_router", False),
        ("mixtral", "pruned_heads", {"0": [1]}),
        ("mixtral", "add_cross_attention", True),
        ("deepseek_v3", "num_dense_layers", 0),
        ("dots1", "use_sliding_window", False),
        ("deepseek_v3", "use_mla", False),
        ("deepseek_v3", "use_expert_bias", False),
        ("deepseek_v3", "num_shared_experts", 0),
        ("deepseek_v3", "score_function", "softmax"),
        ("deepseek_v3", "moe_router_dtype", "bfloat16"),
        ("glm_moe_dsa", "indexer_rope_interleave", False),
        ("gpt_oss", "use_sinks", False),
        ("gpt_oss", "mlp_bias", False),
        ("afmoe", "embedding_multiplier", 1.0),
        ("qwen2_moe", "use_shared_expert_gate", False),
        ("exaone_moe", "first_last_k_dense_replace", 2),
        ("llama4_text", "nope_layer_interval", 4),
        ("granitemoehybrid", "normalization_function", "layernorm"),
    ],
)
def test_a_key_that_denies_or_adds_something_is_refused_whatever_its_shape(case, key, value):
    assert f"{key} = {value!r}" in refusal(starting()[case] | {key: value})


def test_the_advice_is_to_accept_the_key_on_the_record_and_following_it_helps():
    start = starting()["qwen3_moe"]
    message = refusal(start | {"mystery": ["a b", 1]})
    assert "leave the checkpoint as it is" in message
    assert "remove" not in message
    option = re.search(r"--accept-config-key '(.*?)', or", message)[1]
    family, blueprint = read(start | {"mystery": ["a b", 1]}, [option])
    assert (family, blueprint) == read(start)
    assert blueprint.model.accepted == {"mystery": ["a b", 1]}


def test_only_the_value_that_was_accepted_is_accepted():
    start = starting()["qwen3_moe"]
    for value in (2, True, "1", [1], None):
        if value is not None:
            assert "mystery = " in refusal(start | {"mystery": value}, ["mystery=1"])
    assert read(start | {"mystery": 1.0}, ["mystery=1"])[1].model.accepted == {"mystery": 1.0}
    assert read(start, ["mystery=1"])[1].model.accepted == {}
    assert read(start | {"init_method": "mup", "mystery": "mup"}, ["mystery=mup", "init_method=mup"])[
        1
    ].model.accepted == {"mystery": "mup"}


def test_a_key_that_is_read_cannot_be_accepted_away():
    start = starting()["deepseek_v3"]
    assert "scoring_func" in refusal(start | {"scoring_func": "softmax"}, ["scoring_func=softmax"])


def test_a_key_inside_a_section_is_accepted_under_its_whole_name():
    start = starting()["qwen3_moe"]
    rope = start["rope_parameters"] | {"mystery": 1}
    message = refusal(start | {"rope_parameters": rope})
    assert "--accept-config-key rope_parameters.mystery=1," in message
    assert "mystery" in refusal(start | {"rope_parameters": rope}, ["mystery=1"])
    found = read(start | {"rope_parameters": rope}, ["rope_parameters.mystery=1"])
    assert found[1].model.accepted == {"rope_parameters.mystery": 1}


def test_a_setting_of_generation_is_none_inside_a_section():
    start = starting()["qwen3_moe"]
    for key, value in {"temperature": 0.6, "top_k": 20}.items():
        assert read(start | {key: value}) == read(start)
        rope = start["rope_parameters"] | {key: value}
        assert f"{key} = {value!r}" in refusal(start | {"rope_parameters": rope})


def test_two_language_models_may_hold_one_accepted_key():
    start = starting()["qwen3_moe"]
    nested = {"model_type": "some_vl", "text_config": start | {"mystery": 1}, "image_token_id": 3}
    assert "--accept-config-key text_config.mystery=1," in refusal(nested)
    assert read(nested, ["text_config.mystery=1"])[1].model.accepted == {"text_config.mystery": 1}


@pytest.mark.parametrize("texts", [["key"], ["=1"], ["key=1", "key=2"]])
def test_an_option_that_accepts_nothing_is_named(texts):
    with pytest.raises(UsageError) as caught:
        parse_accepted(texts)
    assert caught.value.code == "E_ACCEPT"


def test_every_reason_stands_for_keys_and_no_key_has_two():
    listed = [key for keys in unread.REASONS.values() for key in keys.split()]
    assert len(listed) == len(set(listed))
    assert not [key for key in listed if any(re.fullmatch(pattern, key) for pattern in unread.PATTERNS)]


HUB = {
    "hybrid_layer_pattern": [0, 1, 1, 0], "moe_layer_freq": [0, 1, 1, 1], "sliding_window": 4,
    "sliding_window_size": 4, "attention_chunk_size": 4, "swa_rope_theta": 10000, "rope_theta": 5000000,
    "partial_rotary_factor": 0.334, "layernorm_epsilon": 1e-5, "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False, "routed_scaling_factor": None, "n_shared_experts": None,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip


def hub():
    """MiMo-V2 as its authors write it: other keys than transformers', and a window that leaves out the query."""
    start = starting()["mimo_v2_flash"]
    dropped = ("rope_parameters", "mlp_layer_types", "rms_norm_eps", *HUB)
    return {key: value for key, value in start.items() if key not in dropped} | HUB | {"num_hidden_layers": 4}


def test_the_hub_s_form_of_mimo_reads_as_its_class_completes_it():
    found = read(hub())
    assert found == read(completed(hub()))
    assert found[1].model.layers[1].mixer.window == 5
    assert [layer.mixer.rope.theta for layer in found[1].model.layers] == [5e6, 1e4, 1e4, 5e6]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hybrid_layer_pattern", [0, 1, 0, 0]),
        ("moe_layer_freq", [1, 1, 1, 1]),
        ("sliding_window", 7),
        ("attention_chunk_size", 6),
        ("swa_rope_theta", 5000),
        ("rope_theta", 10000),
        ("partial_rotary_factor", 0.5),
        ("layernorm_epsilon", 1e-6),
        ("add_swa_attention_sink_bias", False),
        ("add_full_attention_sink_bias", True),
        ("swa_num_key_value_heads", 1),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_a_key_of_the_hub_s_form_that_says_something_else_is_refused(key, value):
    message = refusal(hub() | {key: value})
    assert key in message
    assert "read by nothing" not in message


def test_infinity_is_a_value_of_a_configuration_and_of_nothing_else(tmp_path):
    folder = tiny.save("granitemoehybrid", tmp_path / "one.ckpt")
    config = json.loads((folder / "config.json").read_text())
    least = config["time_step_limit"][0]
    text = json.dumps(config | {"time_step_limit": [least, float("inf")]})
    assert "Infinity" in text
    (folder / "config.json").write_text(text)
    found = open_checkpoint(folder)
    assert read_config(found) == read(config)
    assert "expected a finite number" in refusal(found.config | {"residual_multiplier": float("inf")})
