"""The keys of a config.json, and the differences between two of them. Torch-free.

A key that changes no number of a replay may still change how a server serves: where it stops, how long a context it
accepts, which code it imports. So a receipt keeps every key, with a bounded value, and ranks every difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

VALUE_CHARACTERS = 200
KEYS = 1024  # keys that are kept one by one; beyond, a section is one value
SECTIONS = ("text_config.", "llm_config.", "language_config.")
Flat = dict[str, str]

SERVED, OTHER, COSMETIC = "served", "other", "cosmetic"
_SERVED = {
    *("architectures", "auto_map", "model_type", "tokenizer_class", "torch_dtype", "dtype"),
    *("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id", "vocab_size"),
    *("max_position_embeddings", "model_max_length", "original_max_position_embeddings"),
    *("max_sequence_length", "max_seq_len", "seq_length", "rope_parameters", "rope_theta", "rope_scaling"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "attention_chunk_size"),
    *("tie_word_embeddings", "quantization_config", "compression_config", "quantization"),
    *("num_nextn_predict_layers", "num_mtp_layers"),
}
_COSMETIC = {
    *("transformers_version", "_name_or_path", "_commit_hash", "unsloth_version", "unsloth_fixed"),
    *(
        "_attn_implementation",
        "attn_implementation",
        "_attn_implementation_autoset",
        "_experts_implementation",
    ),
    *("use_cache", "gradient_checkpointing", "initializer_range", "output_router_logits", "torchscript"),
    *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "use_bfloat16"),
    *("attention_dropout", "hidden_dropout", "hidden_dropout_prob", "resid_pdrop", "embd_pdrop"),
    *("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_alpha", "moe_aux_loss_coef", "seq_aux"),
    *("tf_legacy_loss", "chunk_size_feed_forward", "pretraining_tp", "finetuning_task", "problem_type"),
}
_SPELLINGS = {
    "torch_dtype": "dtype",
    "rope_theta": "rope_parameters.rope_theta",
    "num_local_experts": "num_experts",
}
"""Keys that versions of transformers spell in two ways, each with the spelling under which they are compared."""


def flat(config: Mapping[str, Any]) -> Flat:
    """Return every key of a configuration with its value as JSON text of bounded length; nested keys have dots.

    Length and sha256 stand for a value of more than 200 characters. If there are more than 1024 keys, they also stand
    for whole sections, the deepest first.
    """
    for depth in (8, 2, 1):
        found = dict(_leaves(config, "", depth))
        if len(found) <= KEYS:
            return found
    return {"config.json": _bounded(config)}


def difference(base: Mapping[str, str], tuned: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return ``key``, ``base``, ``tuned`` (null: absent) and ``rank`` of each key that differs, served keys first.

    Two spellings of a key count as one key. Absent, null and empty are equal if no server distinguishes them.
    """
    one, other = _spelled(base), _spelled(tuned)
    rows = [
        {"key": key, "base": one.get(key), "tuned": other.get(key), "rank": rank(key)}
        for key in sorted(one.keys() | other.keys())
    ]
    order = (SERVED, OTHER, COSMETIC)
    return sorted(
        (row for row in rows if _differs(row)), key=lambda row: (order.index(row["rank"]), row["key"])
    )


def rank(key: str) -> str:
    """Return ``served`` if a server acts on a key, ``cosmetic`` if it only says how the file was written or trained."""
    names = _inner(key)[1].split(".")
    if names[0] in _SERVED:
        return SERVED
    return COSMETIC if names[0] in _COSMETIC else OTHER


def _differs(row: Mapping[str, Any]) -> bool:
    base, tuned = row["base"], row["tuned"]
    nothing = (None, "null", "[]", "{}")
    if row["rank"] != SERVED and base in nothing and tuned in nothing:
        return False
    return bool(base != tuned)


def _leaves(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    if not isinstance(value, Mapping) or (path and (not value or depth == 0)):
        yield path, _bounded(value)
        return
    for key in sorted(value):
        name = key if len(key) <= VALUE_CHARACTERS else _bounded(key)
        yield from _leaves(value[key], f"{path}.{name}" if path else name, depth - 1)


def _bounded(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    if len(text) <= VALUE_CHARACTERS:
        return text
    return f"{len(text)} characters, sha256 {hashlib.sha256(text.encode('ascii')).hexdigest()}"


def _spelled(values: Mapping[str, str]) -> Flat:
    """Return the keys under one spelling; a key keeps its spelling if both are there with different values."""
    out: Flat = {}
    for key in sorted(values):
        section, inner = _inner(key)
        target = section + _spelling(inner)
        value = values[key].replace('"torch.', '"') if target.endswith("dtype") else values[key]
        if (inner, value) in (("rope_scaling", "null"), ("rope_parameters.rope_type", '"default"')):
            continue
        out[target if out.get(target, value) == value and values.get(target, value) == value else key] = value
    return out


def _spelling(key: str) -> str:
    key = _SPELLINGS.get(key, key)
    if key.startswith("rope_scaling."):
        key = f"rope_parameters.{key.removeprefix('rope_scaling.')}"
    return "rope_parameters.rope_type" if key == "rope_parameters.type" else key


def _inner(key: str) -> tuple[str, str]:
    """Return the section of the language model that holds a key, if any, and the key within that section."""
    section = next((each for each in SECTIONS if key.startswith(each)), "")
    return section, key.removeprefix(section)
