"""Decide which unread keys of a configuration change no number.

There are three kinds, tested in this order. No forward pass reads the first kind, whatever its value (`ANYWHERE`,
`PATTERNS`). The second kind states what the model computes (`features.STATED`). The third kind switches off a feature
that the model does not compute (`switched_off`). A key that a family's class reads is never inert: a generated test
checks every class against this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from moe_atlas.configuration.features import named, states
from moe_atlas.models.spec import ModelSpec

GENERATION = "how text is generated; at the top level only"
"""This reason does not apply inside a section: a router or a rotation may have a temperature of its own there."""
REASONS: Mapping[str, str] = {
    "which classes read the checkpoint, and where it came from": (
        "_name_or_path architectures auto_map finetuning_task model_type name_or_path tokenizer_class torchscript "
        "transformers_version transformers.js_config custom_pipelines revision"
    ),
    "how numbers are stored or returned, or which kernels compute them": (
        "attn_implementation dtype ep_size keep_last_n_layers num_logits_to_keep output_attentions "
        "output_hidden_states output_router_logits output_scores pretraining_tp return_dict return_dict_in_generate "
        "torch_dtype tp_size use_bfloat16 use_cache use_flash_attn use_return_dict chunk_size_feed_forward "
        "gradient_checkpointing use_mamba_kernels use_grouped_mm"
    ),
    "used in training alone": "init_device init_method init_std initializer_range seq_aux",
    "encoders and decoders beside one another, or heads of other tasks": (
        "id2label is_decoder is_encoder_decoder label2id num_labels problem_type task_specific_params "
        "tie_encoder_decoder"
    ),
    GENERATION: (
        "bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size "
        "exponential_decay_length_penalty generation_config length_penalty max_length max_new_tokens min_length "
        "no_repeat_ngram_size num_beam_groups num_beams num_return_sequences prefix remove_invalid_values "
        "repetition_penalty suppress_tokens temperature top_k top_p typical_p"
    ),
    "how long a text may be; where a family's mathematics needs it, the family reads it": (
        "max_position_embeddings max_window_layers model_max_length"
    ),
    "of the module that predicts further tokens, which is not replayed": (
        "num_mtp_layers num_mtp_modules num_nextn_predict_layers nextn_use_scmoe index_share_for_mtp_iteration"
    ),
}
ANYWHERE: Mapping[str, str] = {key: reason for reason, keys in REASONS.items() for key in keys.split()}
"""Keys that change no number of an evaluation forward pass in any supported family, whatever their value."""

PATTERNS: Mapping[str, str] = {
    r"unsloth_\w+": "a stamp of unsloth",
    r"_attn_implementation\w*|_experts_implementation\w*|_flash_attn_\w+": "which kernels compute the same numbers",
    r"\w+_token_(id|ids|index)": "which token stands for what",
    r"_commit_hash|_from_\w+": "where transformers found the file",
    r"(use_)?mtp(_\w+)?": "of the module that predicts further tokens, which is not replayed",
    r"(\w+_)?(dropout|pdrop)(_prob|_rate|_p)?|\w*(drop_path|layerdrop)\w*": "used in training alone",
    r"(\w+_)?loss(_(coef\w*|weight|alpha|type|function|scaling_factor))?": "used in training alone",
}
"""Patterns of further such keys; a pattern must match the whole name."""

SWITCH = re.compile(r"(^|_)(use|enable|enabled|with|has|add|apply)(_|$)")
SIZE = re.compile(
    r"(_size|_window|_sizes|_dim|_rank|_width|_layers|_heads|_experts|_tokens|_length)$|^(num|n)_"
)
FACTOR = re.compile(r"(_multiplier|_scale|_scaling|_factor|_mult)$")

OFF: Mapping[str, str] = {
    "`null`, `{}` or `[]`": "says nothing",
    "`false`, of a name with use, enable, with, has, add or apply": "switches off what the model does not compute",
    "0, of a name that ends or begins as sizes and counts do": "has none of what the model does not compute",
    "1, of a name that ends as factors do": "scales by 1 what the model does not scale",
}
"""The values that `switched_off` accepts, in words."""


def changes_nothing(key: str, value: Any, model: ModelSpec, *, nested: bool = False) -> bool:
    """Return whether an unread key changes no number of this model; `nested`: the key stands inside a section."""
    why = reason(key)
    if why is not None and not (nested and why == GENERATION):
        return True
    return states(key, value, model, same) or switched_off(key, value, model)


def reason(key: str) -> str | None:
    """Return why a key is inert in every family, or None if it is not."""
    shaped = (why for pattern, why in PATTERNS.items() if re.fullmatch(pattern, key))
    return ANYWHERE.get(key) or next(shaped, None)


def switched_off(key: str, value: Any, model: ModelSpec) -> bool:
    """Return whether a key is empty, or switches off, sizes to 0 or scales by 1 a feature that the model lacks."""
    if value is None or value == {} or value == []:
        return True
    off = (SWITCH.search(key) and value is False) or (SIZE.search(key) and same(value, 0))
    neutral = FACTOR.search(key) and same(value, 1)
    return bool(off or neutral) and not named(key, model)


def same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal: 1 equals 1.0, and neither equals true."""
    return bool(_kind(one) == _kind(other) and one == other)


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)
