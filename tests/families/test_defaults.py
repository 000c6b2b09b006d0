"""A key that a configuration leaves out means what it means to transformers' own class, or the checkpoint is refused.

Generated: of every configuration in the tests, and of every class's own, each key is taken out and set to null, and the
reading is compared with that of the configuration as the class completes it.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from types import SimpleNamespace

import pytest
from transformers import CONFIG_MAPPING

from moe_atlas.errors import InputRefused
from moe_atlas.loading.registry import FAMILIES, read_config
from scripts.oracle import tiny

STAND_IN = {"kimi_k2": "deepseek_v3"}
"""The class that reads an architecture without a class of its own."""
WITHOUT_CLASS = {"bailing_moe", "bailing_moe_v2", "deepseek"}
ELSEWHERE = {
    ("dbrx", "rope_parameters"): "the class forgets attn_config.rope_theta, which every other loader reads",
    ("dbrx", "rope_parameters.rope_theta"): "as above",
    ("deepseek_v4", "rope_theta"): "rope_parameters hold it; the class writes its own default beside them",
    ("deepseek_v4", "compress_rope_theta"): "as above",
    ("deepseek_v4", "partial_rotary_factor"): "as above",
    (
        "deepseek_v32",
        "first_k_dense_replace",
    ): "mlp_layer_types hold; the class writes its own default beside them",
    ("glm_moe_dsa", "first_k_dense_replace"): "as above",
    (
        "phimoe",
        "rope_parameters.original_max_position_embeddings",
    ): "the class forgets the same key one level above",
}
"""Keys that may be missing although the class fills in something else, with the reason."""
NULLS = {
    "n_group": "one group",
    "topk_group": "one group",
    "head_dim": "width over heads",
    "q_lora_rank": "q is projected directly",
    "sliding_window": "no window",
}
"""What a null in older releases means; some of today's classes refuse it."""
CLASSES = sorted(set(FAMILIES) - WITHOUT_CLASS)
LAYERS = ("num_hidden_layers", "n_layers", "num_layers")


def read(values):
    """What we make of a configuration: family and blueprint, or the refusal."""
    try:
        return read_config(SimpleNamespace(label="x", config=values, logical={}))
    except InputRefused as refused:
        return str(refused)


def completed(values):
    """The configuration as its class fills it up and writes it."""
    model_type = values["model_type"]
    standing = STAND_IN.get(model_type, model_type)
    given = json.loads(json.dumps(values), object_hook=lambda o: float("inf") if "__float__" in o else o)
    whole = CONFIG_MAPPING[standing].from_dict(given | {"model_type": standing})
    return json.loads(whole.to_json_string(use_diff=False)) | {"model_type": model_type}


@cache
def starting():
    """A complete configuration of every case in the tests, and of every class that can be read as it comes."""
    cases = {
        case: completed(
            {k: v for k, v in (tiny.BASE | own).items() if v is not tiny.ABSENT} | {"model_type": kind}
        )
        for case, (kind, own) in tiny.CASES.items()
    }
    for kind in CLASSES:
        own = completed({"model_type": kind})
        short = completed({"model_type": kind} | {key: 6 for key in LAYERS if key in own})
        if isinstance(read(short), tuple):
            cases[f"{kind}, its class"] = short
    return cases


def paths(values, before=()):
    for key, value in values.items():
        if before or key != "model_type":
            yield (*before, key)
        if isinstance(value, dict):
            yield from paths(value, (*before, key))


def edited(values, path, value):
    changed = copy.deepcopy(values)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is tiny.ABSENT:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


def judged(values):
    """Whether we refuse a configuration, or read it as its class does."""
    found = read(values)
    if isinstance(found, str):
        return True
    try:
        whole = completed(values)
    except Exception as refused:  # the class refuses as it likes
        return f"read, and the class refuses: {refused}"
    return found == read(whole) or "read otherwise than the class completes it"


@pytest.mark.parametrize("case", [*tiny.CASES, *(f"{kind}, its class" for kind in CLASSES)])
def test_a_missing_key_is_the_class_s_default_or_refused(case):
    if case not in starting():
        pytest.skip("no experts, or a kind of layer that is not replayed, by default")
    start = starting()[case]
    kind = start["model_type"]
    assert isinstance(read(start), tuple), read(start)
    poor = start
    for path in paths(start):
        if (kind, ".".join(path)) in ELSEWHERE:
            continue
        assert judged(edited(start, path, tiny.ABSENT)) is True, path
        try:
            poorer = edited(poor, path, tiny.ABSENT)
        except KeyError:
            continue  # went with the section around it
        assert judged(poorer) is True, f"{path}, without everything else that can be left out"
        poor = poorer if isinstance(read(poorer), tuple) else poor


@pytest.mark.parametrize("case", tiny.CASES)
def test_a_null_is_what_the_class_makes_of_it_or_refused(case):
    start = starting()[case]
    for path in paths(start):
        if (start["model_type"], ".".join(path)) in ELSEWHERE:
            continue
        verdict = judged(edited(start, path, None))
        # Of a key that moves no number a null is no worse than no key.
        assert verdict is True or "class refuses" in verdict, path
        if verdict is not True and path[-1] not in NULLS:
            assert read(edited(start, path, None)) == read(start), path


def test_every_family_has_a_class_or_none_is_known():
    assert {kind for kind in FAMILIES if STAND_IN.get(kind, kind) not in CONFIG_MAPPING} == WITHOUT_CLASS


def test_what_is_read_elsewhere_is_still_a_key_of_its_family():
    known = {(start["model_type"], ".".join(path)) for start in starting().values() for path in paths(start)}
    assert ELSEWHERE.keys() <= known


LING = {
    "model_type": "bailing_moe_v2", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "num_hidden_layers": 3, "vocab_size": 48, "intermediate_size": 40, "moe_intermediate_size": 12,
    "num_experts": 8, "num_experts_per_tok": 3, "num_shared_experts": 2, "n_group": 4, "topk_group": 2,
    "routed_scaling_factor": 1.7, "first_k_dense_replace": 1, "score_function": "sigmoid", "hidden_act": "silu",
    "moe_router_enable_expert_bias": True, "rms_norm_eps": 1e-5, "use_qkv_bias": True, "use_bias": True,
    "rope_theta": 700.0, "partial_rotary_factor": 0.5, "tie_word_embeddings": True, "use_qk_norm": True,
    "norm_topk_prob": True,
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(LING.keys() - {"model_type"}))
def test_without_a_class_nothing_that_moves_a_number_may_be_missing(key):
    found = read(edited(LING, (key,), tiny.ABSENT))
    assert isinstance(found, str) or found == read(LING)


@pytest.mark.parametrize(
    ("case", "key"),
    [
        ("gpt_oss", "rope_parameters"),
        ("mistral4", "rope_parameters"),
        ("laguna", "rope_parameters"),
        ("qwen2_moe", "num_key_value_heads"),
    ],
)
def test_a_key_that_loaders_fill_in_differently_is_refused_where_it_is_missing(case, key):
    assert f"{key}: " in read(edited(starting()[case], (key,), tiny.ABSENT))


@pytest.mark.parametrize(
    ("case", "key", "expected"),
    [
        (
            "dbrx",
            "ffn_config.moe_normalize_expert_weights",
            lambda m: m.layers[0].moe.router.renormalise is True,
        ),
        ("gpt_oss", "sliding_window", lambda m: m.layers[0].mixer.window == 128),
        ("exaone_moe", "sliding_window", lambda m: m.layers[0].mixer.window == 4096),
        ("afmoe", "sliding_window", lambda m: m.layers[0].mixer.window == 1024),
        ("llama4_text", "attention_chunk_size", lambda m: m.layers[0].mixer.chunk == 8192),
        ("mimo_v2_flash", "attention_value_scale", lambda m: m.layers[0].mixer.value_scale == 0.707),
        ("glm_moe_dsa", "rms_norm_eps", lambda m: m.final_norm.eps == 1e-5),
        ("glm4_moe_lite", "rms_norm_eps", lambda m: m.final_norm.eps == 1e-5),
        ("mistral4", "rope_parameters.partial_rotary_factor", lambda m: m.layers[0].mixer.rope.dim == 8),
        ("deepseek_v3", "n_group", lambda m: m.layers[1].moe.router.groups == 8),
        ("deepseek_v32", "topk_group", lambda m: m.layers[1].moe.router.kept_groups == 4),
        ("kimi_k2, its class", "n_group", lambda m: m.layers[-1].moe.router.groups == 8),
        ("qwen2_moe-window", "use_sliding_window", lambda m: m.layers[0].mixer.window is None),
        ("qwen3_moe-window", "use_sliding_window", lambda m: m.layers[0].mixer.window is None),
        ("qwen3_moe-window", "sliding_window", lambda m: m.layers[0].mixer.window == 4096),
    ],
)
def test_defaults_that_were_once_others(case, key, expected):
    start = starting()[case]
    if case == "qwen2_moe-window":
        start = edited(start, ("layer_types",), tiny.ABSENT)
    found = read(edited(start, tuple(key.split(".")), tiny.ABSENT))
    assert isinstance(found, tuple), found
    assert expected(found[1].model)


def test_a_layer_without_gate_is_squared_relu_by_default():
    found = read(edited(starting()["nemotron_h"], ("mlp_hidden_act",), tiny.ABSENT))
    experts = next(layer.moe.experts for layer in found[1].model.layers if layer.moe)
    assert experts.activation == "relu2"


def test_the_text_of_qwen3_vl_turns_slower_by_default():
    start = {
        key: value
        for key, value in completed({"model_type": "qwen3_vl_moe_text"}).items()
        if "rope" not in key
    }
    assert read(start)[1].model.layers[0].mixer.rope.theta == 500000.0
