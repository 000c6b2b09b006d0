"""One thing said twice in a configuration: equal is read, different is refused, whoever would read which."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from moe_atlas.checkpoint.detect import detect
from moe_atlas.configuration import parts
from moe_atlas.errors import InputRefused
from moe_atlas.loading.registry import read_config
from moe_atlas.loading.unsupported import TEXT_SECTIONS
from scripts.oracle import tiny
from tests.families.test_defaults import LING, starting

ALIASES = [
    parts.WIDTH,
    parts.HEADS,
    parts.LAYERS,
    parts.EXPERTS,
    parts.TOP_K,
    ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    ("n_group", "num_expert_group"),
    ("norm_topk_prob", "moe_renormalize"),
    ("n_shared_experts", "num_shared_experts"),
    ("num_experts_per_tok", "experts_per_token"),
    ("tie_word_embeddings", "tie_embedding"),
    ("layer_types", "layers_block_type"),
    ("rope_theta", "theta"),
    ("dtype", "torch_dtype"),
]
"""Names of one thing; a family reads some of them and refuses the others as unknown."""
UNREAD = "the key is read by nothing"
WITHOUT_POSITIONS = ("jamba", "kimi_linear", "nemotron_h")


def read(values):
    return read_config(SimpleNamespace(label="tuned", config=values, logical={}))


def refusal(values):
    with pytest.raises(InputRefused) as caught:
        read(values)
    assert caught.value.code == "E_FAMILY"
    assert "tuned: config.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def other(value):
    """A value of the same kind that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value[1:], value[0]] if value[1:] != value[:-1] else value[:-1]
    return value + 1 if isinstance(value, int | float) else f"not {value}"


def equal_or_unread(values, expected):
    """Whether a configuration reads as expected, or holds a key that its family does not know."""
    try:
        return read(values) == expected
    except InputRefused as refused:
        return UNREAD in str(refused)


@pytest.mark.parametrize("case", tiny.CASES)
def test_aliases_agree_or_are_refused(case):
    start = {"dtype": "bfloat16"} | {
        key: value for key, value in starting()[case].items() if value is not None
    }
    found = read(start)
    for names in ALIASES:
        for one in names:
            for alias in set(names) - {one}:
                if one not in start or alias in start:
                    continue
                assert alias in refusal(start | {alias: other(start[one])}), (one, alias)
                assert equal_or_unread(start | {alias: start[one]}, found), (one, alias)


def test_a_whole_number_and_a_decimal_one_are_equal_and_true_is_no_number():
    start = starting()["qwen3_moe"]
    theta = start["rope_parameters"]["rope_theta"]
    assert read(start | {"rope_theta": int(theta)}) == read(start)
    both = refusal(start | {"num_experts": True})
    assert "num_experts = True, num_local_experts = 8" in both


ROTATING = [case for case in tiny.CASES if starting()[case]["model_type"] not in WITHOUT_POSITIONS]


def sections(start):
    """The settings of a rotation, for each type of layer where they are nested."""
    settings = start["rope_parameters"]
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested or [settings]


@pytest.mark.parametrize("case", ROTATING)
@pytest.mark.parametrize("key", ["rope_theta", "partial_rotary_factor"])
def test_rope_settings_beside_and_inside_the_section_agree_or_are_refused(case, key):
    start = starting()[case]
    inside = {section.get(key) for section in sections(start)}
    message = refusal(start | {key: 0.3125 if key != "rope_theta" else 12345.0}) if inside != {None} else ""
    assert not inside - {None} or f"{key} = " in message or "rotary" in message
    if len(inside) == 1 and None not in inside and key not in start:
        assert read(start | {key: inside.pop()}) == read(start)


@pytest.mark.parametrize("case", ROTATING)
def test_both_generations_of_rope_settings_agree_or_are_refused(case):
    start = starting()[case]
    assert "rope" in refusal(start | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    if sections(start) == [start["rope_parameters"]]:
        copied = {
            "type" if key == "rope_type" else key: value for key, value in start["rope_parameters"].items()
        }
        assert read(start | {"rope_scaling": copied}) == read(start)
        assert read(start | {"rope_scaling": {}}) == read(start)
        assert read({**start, "rope_parameters": {}, "rope_scaling": copied}) == read(start)


def test_a_kind_of_scaling_is_named_once():
    start = starting()["deepseek_v3-yarn"]
    settings = start["rope_parameters"]
    assert "type" in refusal(start | {"rope_parameters": settings | {"type": "linear"}})
    assert read(start | {"rope_parameters": settings | {"type": "yarn"}}) == read(start)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("deepseek_v3-yarn", {"original_max_position_embeddings": 32}),
        ("phimoe-longrope", {"original_max_position_embeddings": 32}),
        ("minimax_m2", {"rotary_dim": 8}),
        ("deepseek_v4", {"rope_theta": 301.0}),
        ("deepseek_v4", {"compress_rope_theta": 91.0}),
        ("deepseek_v4", {"qk_rope_head_dim": 4}),
        ("deepseek_v3", {"head_dim": 11}),
        ("deepseek_v3", {"qk_head_dim": 11}),
        ("deepseek_v3", {"num_key_value_heads": 2}),
        ("longcat_flash", {"head_dim": 14}),
        ("dbrx", {"num_key_value_heads": 4}),
        ("dbrx", {"rope_theta": 701.0}),
        ("hunyuan_v1_moe", {"attention_head_dim": 8}),
        ("hunyuan_v1_moe", {"num_shared_expert": 2}),
        ("hunyuan_v1_moe", {"moe_layer_num_skipped": 1}),
        ("lfm2_moe", {"block_ff_dim": 41}),
        ("llama4_text", {"moe_layers": [0, 2]}),
        ("llama4_text", {"interleave_moe_layer_step": 1}),
        ("llama4_text", {"layer_types": ["full_attention"] * 5}),
        ("llama4_text", {"no_rope_layers": [1, 1, 1, 1, 1]}),
        ("glm4_moe_lite", {"first_k_dense_replace": 2}),
        ("exaone_moe", {"first_k_dense_replace": 2}),
        ("deepseek_v32", {"first_k_dense_replace": 2}),
        ("glm_moe_dsa", {"index_topk_pattern": "FSS"}),
        ("kimi_linear", {"linear_attn_config": {"num_heads": 4}}),
        ("kimi_linear", {"linear_attn_config": {"full_attn_layers": [1]}}),
        ("kimi_linear", {"linear_attn_config": {"kda_layers": [1, 2]}}),
        ("nemotron_h", {"hybrid_override_pattern": "ME*-M"}),
        ("nemotron_h", {"num_hidden_layers": 4}),
        ("nemotron_h", {"n_shared_experts": 2}),
        ("granitemoehybrid", {"mamba_expand": 2}),
        ("afmoe", {"num_expert_groups": 2}),
        ("qwen3_5_moe_text", {"norm_topk_prob": False}),
        ("qwen3_5_moe_text", {"mlp_only_layers": [0]}),
        ("qwen3_moe-window", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("mixtral-window", {"use_sliding_window": False}),
        ("qwen2_moe-window", {"use_sliding_window": False}),
        ("gpt_oss", {"layer_types": ["chunked_attention", "full_attention"]}),
        ("gpt_oss", {"layer_types": ["full_attention"]}),
    ],
)
def test_what_one_key_says_and_another_implies_must_agree(case, change):
    start = starting()[case]
    message = refusal(start | change)
    assert UNREAD not in message
    assert any(part in message for key in change for part in (key, "rope_theta", "moe_layers", "layer_types"))


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("minimax_m2", {"rotary_dim": 6}),
        ("deepseek_v3", {"head_dim": 14, "qk_head_dim": 14}),
        ("dbrx", {"num_key_value_heads": 2}),
        ("dbrx", {"rope_parameters": None, "rope_theta": None}),
        ("glm4_moe_lite", {"first_k_dense_replace": 1}),
        ("glm_moe_dsa", {"index_topk_pattern": "FFF"}),
        (
            "kimi_linear",
            {"linear_attn_config": {"num_heads": 3, "full_attn_layers": [2], "kda_layers": [1, 3]}},
        ),
        ("nemotron_h", {"hybrid_override_pattern": "ME*-E", "num_hidden_layers": 5}),
        ("hunyuan_v1_moe", {"attention_head_dim": 12, "num_shared_expert": [1, 1]}),
        ("lfm2_moe", {"block_ff_dim": 40}),
        ("granitemoehybrid", {"layer_types": ["mamba", "attention", "mamba"]}),
    ],
)
def test_what_is_said_twice_alike_is_read(case, change):
    start = starting()[case]
    assert read(start | change) == read(start)


def test_a_base_of_dbrx_that_its_class_has_forgotten_is_not_read():
    released = {key: value for key, value in starting()["dbrx"].items() if key != "rope_parameters"}
    assert read(released)[1].model.layers[0].mixer.rope.theta == 700.0
    again = released | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    assert "rope_parameters.rope_theta = 10000.0, attn_config.rope_theta = 700.0" in refusal(again)


@pytest.mark.parametrize("path", TEXT_SECTIONS)
def test_two_language_models_in_one_configuration_are_one_or_refused(path):
    def inside(section):
        for key in reversed(path):
            section = {key: section}
        return section

    start, place = starting()["qwen3_moe"], ".".join(path)
    assert read(start | inside(start)) == read(start)
    for change in ({"norm_topk_prob": False}, {"rms_norm_eps": 1e-5}, {"num_experts_per_tok": 2}):
        assert f"{place}.{next(iter(change))} = " in refusal(start | inside(start | change))
    assert place in refusal(start | inside(starting()["mixtral"]))


def test_two_sections_with_a_language_model_are_one_or_refused():
    start = starting()["qwen3_moe"]
    nested = {"model_type": "some_vl", "text_config": start}
    assert read(nested | {"llm_config": start}) == read(nested)
    message = refusal(nested | {"llm_config": start | {"norm_topk_prob": False}})
    assert "text_config and llm_config" in message


@pytest.mark.parametrize("change", [{"rope_theta": 5.0}, {"num_experts_per_tok": 2}, {"vocab_size": 50}])
def test_a_key_around_the_language_model_agrees_with_it_or_is_refused(change):
    start = starting()["qwen3_moe"]
    nested = {
        "model_type": "some_vl",
        "text_config": start,
        "vision_config": {"depth": 2},
        "image_token_id": 3,
    }
    assert read(nested | {"vocab_size": 48, "hidden_size": 32}) == read(nested) == read(start)
    assert f"{next(iter(change))} = " in refusal(nested | change)


def test_a_dtype_is_named_once():
    start = starting()["qwen3_moe"]
    assert "dtype = 'bfloat16', torch_dtype = 'float16'" in refusal(
        start | {"dtype": "bfloat16", "torch_dtype": "float16"}
    )


def test_quantisation_is_described_once():
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    twice = {"quantization_config": settings, "text_config": {"quantization_config": settings}}
    assert detect(twice, {}, "tuned") == {}
    for change in (
        {"text_config": {"quantization_config": settings | {"weight_block_size": [64, 64]}}},
        {"compression_config": {"quant_method": "compressed-tensors"}},
    ):
        with pytest.raises(InputRefused) as caught:
            detect(twice | change, {}, "tuned")
        assert caught.value.code == "E_QUANT"
        assert "'quantization_config': stands in config.json twice" in str(caught.value)


@pytest.mark.parametrize(
    "key", ["mscale", "attention_factor", "factor", "beta_fast", "rope_theta", "rope_type"]
)
@pytest.mark.parametrize("value", ["2.0", [2.0], True])
def test_rope_settings_of_another_kind_are_refused_and_no_bug(key, value):
    start = starting()["deepseek_v3-yarn"]
    if (key, value) != ("rope_type", "2.0"):
        assert key in refusal(start | {"rope_parameters": start["rope_parameters"] | {key: value}})


def test_a_magnitude_that_contradicts_its_own_parts_is_refused():
    start = starting()["deepseek_v3-yarn"]
    settings = start["rope_parameters"]
    implied = read(start)[1].model.layers[0].mixer.rope.params["attention_factor"]
    assert read(start | {"rope_parameters": settings | {"attention_factor": implied}}) == read(start)
    assert "attention_factor" in refusal(start | {"rope_parameters": settings | {"attention_factor": 1.5}})


def test_a_length_inside_the_settings_agrees_with_that_beside_them():
    start = starting()["mistral4"]
    settings = start["rope_parameters"]
    assert read(start | {"rope_parameters": settings | {"max_position_embeddings": 64}}) == read(start)
    message = refusal(start | {"rope_parameters": settings | {"max_position_embeddings": 65}})
    assert "rope_parameters.max_position_embeddings = 65, max_position_embeddings = 64" in message


def test_ling_reads_as_it_is_written():
    json.dumps(LING)
    assert read(LING)[1].model.layers[0].mixer.rope.theta == 700.0


@pytest.mark.parametrize("key", ["partial_rotary_factor", "rope_theta"])
@pytest.mark.parametrize("level", ["beside the sections", "around them"])
def test_a_setting_beside_those_by_type_of_layer_is_one_of_them_or_refused(key, level):
    start = starting()["laguna"]
    settings = start["rope_parameters"]

    def put(value, nested=settings):
        return start | ({"rope_parameters": nested, key: value} if level == "around them"
                        else {"rope_parameters": nested | {key: value}})  # fmt: skip

    for section in settings.values():
        assert read(put(section[key])) == read(start)
    assert f"{key} = " in refusal(put(0.3125))
    bare = {
        kind: {name: value for name, value in section.items() if name != "partial_rotary_factor"}
        for kind, section in settings.items()
    }
    # The class turns the whole head where a section says nothing, whatever stands beside it.
    if key == "partial_rotary_factor":
        assert f"{key} = " in refusal(put(0.5, bare))
        assert read(put(1.0, bare)) == read(start | {"rope_parameters": bare})
