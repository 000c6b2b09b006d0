"""What is said of a release whose architecture is not replayed: its own name, what is missing, or that it is dense."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import CONFIG_MAPPING

from moe_atlas.auditing.checks import require_measurable
from moe_atlas.errors import NEXT_STEPS, InputRefused
from moe_atlas.loading.registry import FAMILIES, read_config
from moe_atlas.loading.unsupported import MISSING, expert_counts, names, refusal, several
from scripts.oracle import tiny

RELEASES = {
    "afmoe": "arcee-ai/Trinity-Nano-Preview",
    "aria > aria_text": "rhymes-ai/Aria",
    "arctic": "Snowflake/snowflake-arctic-instruct",
    "bailing_moe": "inclusionAI/Ling-mini-2.0 inclusionAI/Ling-lite-1.5",
    "dbrx": "databricks/dbrx-instruct",
    "deepseek": "deepseek-ai/deepseek-moe-16b",
    "deepseek_ref": "sgl-project/DeepSeek-V4-Pro-FP8",
    "deepseek_v2": "deepseek-ai/DeepSeek-V2 deepseek-ai/DeepSeek-V2-Lite",
    "deepseek_v3": "deepseek-ai/DeepSeek-V3 deepseek-ai/DeepSeek-R1 moonshotai/Moonlight-16B-A3B "
    "nvidia/DeepSeek-V3.1-NVFP4",
    "deepseek_v32": "deepseek-ai/DeepSeek-V3.2",
    "deepseek_v4": "deepseek-ai/DeepSeek-V4-Flash nvidia/DeepSeek-V4-Flash-NVFP4 nvidia/DeepSeek-V4-Pro-NVFP4",
    "deepseek_vl_v2 > deepseek_v2": "deepseek-ai/deepseek-vl2-tiny",
    "dots1": "rednote-hilab/dots.llm1.inst",
    "ernie4_5_moe": "baidu/ERNIE-4.5-21B-A3B-PT baidu/ERNIE-4.5-300B-A47B-PT",
    "ernie4_5_vl_moe > ernie4_5_vl_moe_text": "baidu/ERNIE-4.5-VL-28B-A3B-PT",
    "exaone_moe": "LGAI-EXAONE/K-EXAONE-236B-A23B",
    "flex_olmo": "allenai/FlexOlmo-7x7B-1T",
    "gemma4 > gemma4_text": "nvidia/Gemma-4-31B-IT-NVFP4",
    "glm4_moe": "zai-org/GLM-4.5-FP8",
    "glm4_moe_lite": "zai-org/GLM-4.7-Flash",
    "glm4v_moe > glm4v_moe_text": "zai-org/GLM-4.5V",
    "glm_moe_dsa": "zai-org/GLM-5 zai-org/GLM-5-FP8 zai-org/GLM-5.1 zai-org/GLM-5.2 zai-org/GLM-5.2-FP8 "
    "nvidia/GLM-5.1-NVFP4 nvidia/GLM-5.2-NVFP4",
    "gpt_oss": "openai/gpt-oss-20b openai/gpt-oss-120b NexaAI/gpt-oss-20b-bf16-v5",
    "granitemoe": "ibm-granite/granite-3.1-3b-a800m",
    "granitemoehybrid": "ibm-granite/granite-4.0-h-small",
    "grok-1": "xai-org/grok-1",
    "hunyuan_v1_moe": "tencent/Hunyuan-A13B-Instruct",
    "jamba": "ai21labs/Jamba-v0.1",
    "jetmoe": "jetmoe/jetmoe-8b",
    "kimi_k2": "moonshotai/Kimi-K2-Instruct moonshotai/Kimi-K2-Thinking",
    "kimi_k25 > deepseek_v3": "nvidia/Kimi-K2.5-NVFP4 nvidia/Kimi-K2.7-Code-NVFP4",
    "kimi_k25 > kimi_k2": "moonshotai/Kimi-K2.5",
    "kimi_k3 > kimi_linear": "moonshotai/Kimi-K3",
    "kimi_linear": "moonshotai/Kimi-Linear-48B-A3B-Instruct",
    "lfm2_moe": "LiquidAI/LFM2-8B-A1B LiquidAI/LFM2.5-8B-A1B",
    "llama": "OrionZheng/openmoe-8b",
    "llama4 > llama4_text": "meta-llama/Llama-4-Maverick-17B-128E-Instruct meta-llama/Llama-4-Scout-17B-16E",
    "longcat_flash": "meituan/LongCat-Flash-Chat",
    "mimo_v2_flash": "XiaomiMiMo/MiMo-V2-Flash",
    "minicpm": "openbmb/MiniCPM-MoE-8x2B",
    "minimax": "MiniMaxAI/MiniMax-Text-01-hf",
    "minimax_m2": "MiniMaxAI/MiniMax-M2.5 MiniMaxAI/MiniMax-M2.7 nvidia/MiniMax-M2.5-NVFP4",
    "minimax_m3_vl": "nvidia/MiniMax-M3-NVFP4",
    "mistral3 > mistral4": "mistralai/Mistral-Small-4",
    "mixtral": "mistralai/Mixtral-8x22B-v0.1 mistralai/Mixtral-8x7B-v0.1",
    "nemotron_h": "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16 nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8 "
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4 nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-FP8 "
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4",
    "olmoe": "allenai/OLMoE-1B-7B-0924",
    "PanguProMoE": "IntervitensInc/pangu-pro-moe-model",
    "phimoe": "microsoft/Phi-3.5-MoE-instruct",
    "qwen2_moe": "Qwen/Qwen1.5-MoE-A2.7B Qwen/Qwen1.5-MoE-A2.7B-Chat-GPTQ-Int4 Qwen/Qwen2-57B-A14B",
    "qwen3_5_moe > qwen3_5_moe_text": "Qwen/Qwen3.5-397B-A17B Qwen/Qwen3.5-35B-A3B nvidia/Qwen3.5-122B-A10B-NVFP4 "
    "nvidia/Qwen3.6-35B-A3B-NVFP4 samuelcardillo/Carnice-Qwen3.6-MoE-35B-A3B",
    "qwen3_moe": "Qwen/Qwen3-30B-A3B Qwen/Qwen3-30B-A3B-FP8 Qwen/Qwen3-235B-A22B Qwen/Qwen3-Coder-480B-A35B-Instruct "
    "nvidia/Qwen3-235B-A22B-NVFP4",
    "qwen3_next": "Qwen/Qwen3-Next-80B-A3B-Instruct-FP8",
    "qwen3_vl_moe > qwen3_vl_moe_text": "Qwen/Qwen3-VL-30B-A3B-Instruct Qwen/Qwen3-VL-235B-A22B-Instruct",
    "smallthinker": "PowerInfer/SmallThinker-21BA3B-Instruct",
    "solar_open": "upstage/Solar-Open-100B",
    "step3p7": "stepfun-ai/Step-3.7-Flash-FP8",
    "xverse": "xverse/XVERSE-MoE-A4.2B",
}
"""What the config.json of released models calls the model, and the language model inside it, by these names."""
CLASSES = {"OrionZheng/openmoe-8b": "OpenMoeForCausalLM"}
"""Releases that only the class tells from another architecture."""
DENSE = ("nvidia/Gemma-4-31B-IT-NVFP4",)
"""Releases that have no experts."""
NOT_REPLAYED = {
    "IntervitensInc/pangu-pro-moe-model": "PanguProMoE",
    "OrionZheng/openmoe-8b": "OpenMoeForCausalLM",
    "PowerInfer/SmallThinker-21BA3B-Instruct": "smallthinker",
    "Snowflake/snowflake-arctic-instruct": "arctic",
    "jetmoe/jetmoe-8b": "jetmoe",
    "moonshotai/Kimi-K3": "kimi_k3",
    "nvidia/MiniMax-M3-NVFP4": "minimax_m3_vl",
    "openbmb/MiniCPM-MoE-8x2B": "minicpm",
    "sgl-project/DeepSeek-V4-Pro-FP8": "deepseek_ref",
    "stepfun-ai/Step-3.7-Flash-FP8": "step3p7",
    "xai-org/grok-1": "grok-1",
    "xverse/XVERSE-MoE-A4.2B": "xverse",
}
"""Releases of mixtures of experts that are not replayed, with the name that the refusal gives."""
KINDS = {release: chain.split(" > ") for chain, releases in RELEASES.items() for release in releases.split()}
PARTS = {
    "dots3_note_vision_encoder",
    "gemma4_assistant",
    "nougat",
    "qwen3_omni_moe_talker_text",
    "vitpose_backbone",
}
"""Classes of parts of models, and those that cannot be made as they come."""
ADVICE = re.compile(r"\b(remove|delete|edit|set|rename|add|change) (?!in)", re.IGNORECASE)
"""What a refusal must not tell the owner of a checkpoint to do with it."""


def configuration(release):
    """The part of a release's config.json that names it and counts its experts."""
    *outer, text = KINDS[release]
    values = {"model_type": text, "num_experts": None if release in DENSE else 8}
    if release in CLASSES:
        values["architectures"] = [CLASSES[release]]
    return {"model_type": outer[0], "text_config": values} if outer else values


def refused(config, tensors=()):
    with pytest.raises(InputRefused) as caught:
        read_config(SimpleNamespace(label="tuned", config=config, logical=dict(tensors)))
    assert caught.value.code == "E_FAMILY"
    message = str(caught.value)
    assert "\n" not in message
    assert not ADVICE.search(message), message
    assert NEXT_STEPS["E_FAMILY"] not in message
    return message


@pytest.mark.parametrize("release", KINDS)
def test_a_release_is_replayed_or_refused_by_its_own_name(release):
    config = configuration(release)
    if release in DENSE:
        assert "no routed experts" in refused(config)
    elif release in NOT_REPLAYED:
        name = NOT_REPLAYED[release]
        assert f"= {name!r}: this mixture of experts is not replayed; missing: {MISSING[name]}; " in refused(
            config
        )
    else:
        assert refusal(config, {}, "tuned") is None
        assert KINDS[release][-1] in FAMILIES


@pytest.mark.parametrize("name", MISSING)
def test_every_known_name_says_what_is_missing_wherever_it_stands(name):
    for path in (("text_config",), ("language_config",), ("thinker_config", "text_config")):
        config = {"model_type": name, "num_experts": 8}
        for key in reversed(path):
            config = {"model_type": "some_omni", key: config}
        message = refused(config)
        assert f"{'.'.join(path)}.model_type = {name!r}: this mixture of experts" in message
        assert MISSING[name] in message
    assert FAMILIES.keys().isdisjoint(MISSING)


def test_every_mixture_of_experts_of_the_reference_is_replayed_or_named():
    unnamed = []
    for kind, own in CONFIG_MAPPING.items():
        values = json.loads(own().to_json_string(use_diff=False)) if kind not in PARTS else {}
        if any(map(several, expert_counts(values))):
            called = [name for _, name in names(values)]
            unnamed += [] if any(name in FAMILIES or name in MISSING for name in called) else [kind]
    assert unnamed == []


@pytest.mark.parametrize("value", [None, 0, 1, [0, 1]])
@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"])
def test_a_model_that_counts_no_experts_is_dense_whatever_it_is_called(key, value):
    for kind in ("granitemoehybrid", "gemma4_text", "some_model"):
        message = refused({"model_type": "any", "text_config": {"model_type": kind, key: value}})
        assert f"text_config.model_type = {kind!r}: no routed experts: this is a dense model" in message
        assert "not replayed" not in message


def test_a_dense_architecture_is_said_to_be_dense():
    plain = {"model.layers.0.mlp.up_proj.weight": torch.zeros(4, 4)}
    assert "model_type = 'llama': no routed experts" in refused(
        {"model_type": "llama", "hidden_size": 8}, plain
    )


def test_a_model_that_stores_or_names_experts_is_none_of_the_dense():
    experts = {"model.layers.0.mlp.experts.0.up_proj.weight": torch.zeros(4, 4)}
    for config in ({"model_type": "llama", "hidden_size": 8}, {"model_type": "llama", "num_experts": 0}):
        message = refused(config, experts)
        assert "model_type = 'llama': unknown architecture" in message
        assert "mlp.experts.{e}.up_proj.weight [4, 4]" in message
    assert "unknown architecture" in refused({"model_type": "llama", "moe_ffn_hidden_size": 8})


def test_a_configuration_without_a_name_says_so():
    for config in ({"n_routed_experts": 256, "dim": 4096}, {"num_experts": None}, {}):
        assert "model_type: the key is missing" in refused(config)


def test_a_name_around_the_innermost_one_counts_too():
    thinker = {"model_type": "kimi_k3", "text_config": {"model_type": "kimi_linear", "num_experts": 8}}
    message = refused({"model_type": "some_omni", "thinker_config": thinker})
    assert (
        f"thinker_config.model_type = 'kimi_k3': this mixture of experts is not replayed; missing: {MISSING['kimi_k3']}"
        in message
    )


def test_a_replayed_family_whose_layers_are_all_dense_says_so(tmp_path):
    folder = tiny.save("qwen3_moe", tmp_path / "m", mlp_only_layers=[0, 1])
    spec, _ = tiny.open_tiny(folder)
    with pytest.raises(InputRefused, match="no routed experts") as caught:
        require_measurable(SimpleNamespace(windows=[]), [SimpleNamespace(label="m")], [spec])
    assert not ADVICE.search(str(caught.value))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c, t: t.pop("model.norm.weight"), "missing tensor"),
        (lambda c, t: t.update({"model.extra_norm.weight": torch.zeros(4)}), "nothing in the qwen3_moe spec"),
        (lambda c, t: c.update(hidden_act="mish"), "activation not implemented"),
        (lambda c, t: c.pop("hidden_size"), "the key is missing"),
    ],
)
def test_no_refusal_of_a_family_advises_to_edit_the_checkpoint_or_to_take_another_kind(edited, change, word):
    with pytest.raises(InputRefused, match=word) as caught:
        tiny.open_tiny(edited("qwen3_moe", change))
    message = str(caught.value)
    assert not ADVICE.search(message), message
    assert "leave the checkpoint as it is" in message
    assert "routed experts" not in message
