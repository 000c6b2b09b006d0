"""From a checkpoint to its spec: which family reads which `model_type`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from moe_atlas.errors import InputRefused
from moe_atlas.families import deepseek_v2, deepseek_v3, mixtral, olmoe, qwen2_moe, qwen3_moe
from moe_atlas.families.bind import Stored, bind
from moe_atlas.families.config import Config
from moe_atlas.families.parts import Blueprint
from moe_atlas.families.spec import ModelSpec

FAMILIES: Mapping[str, Callable[[Config], Blueprint]] = {
    "deepseek_v2": deepseek_v2.build,
    "deepseek_v3": deepseek_v3.build,
    "kimi_k2": deepseek_v3.build,
    "mixtral": mixtral.build,
    "olmoe": olmoe.build,
    "qwen2_moe": qwen2_moe.build,
    "qwen3_moe": qwen3_moe.build,
}
"""`model_type` to the function that reads its configuration."""

TEXT_SECTIONS = ("text_config", "llm_config", "language_config")
"""Where a multimodal configuration keeps its language model."""


class CheckpointLike(Protocol):
    """What `resolve` needs of an opened checkpoint."""

    @property
    def label(self) -> str:
        """How the user named it."""

    @property
    def config(self) -> dict[str, Any]:
        """Parsed config.json."""

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """Stored tensors by name."""


def resolve(checkpoint: CheckpointLike) -> ModelSpec:
    """Recognise the architecture and bind every tensor.

    Raises:
        InputRefused: `E_FAMILY` for an unknown architecture, a config key that nothing reads, a missing
            tensor, a wrong shape, or a tensor that nothing reads.
    """
    values = checkpoint.config
    for section in TEXT_SECTIONS:
        inner = values.get(section)
        if isinstance(inner, dict) and inner.get("model_type") in FAMILIES:
            outer: dict[str, Any] = {
                k: values[k] for k in ("tie_word_embeddings", "quantization_config") if k in values
            }
            values = {**outer, **inner}
            break
    family = values.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputRefused(
            "E_FAMILY",
            f"{checkpoint.label}: model_type = {family!r}",
            f"unknown architecture; known: {', '.join(sorted(FAMILIES))}",
            "a new family is one file in moe_atlas/families that turns config.json into a Blueprint",
        )
    config = Config(values, f"{checkpoint.label}: config.json")
    blueprint = FAMILIES[family](config)
    config.refuse_unread()
    return bind(blueprint, family, checkpoint.tensors, checkpoint.label)
