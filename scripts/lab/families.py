"""The lab's two families: their shapes, and how a model of each is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.lab.qwen import QwenModel, QwenShape, qwen_config
from scripts.training.checkpoint import Tensors, config_json, fill
from scripts.training.model import Model, Shape

DEEPSEEK = Shape(
    hidden_size=48,
    intermediate_size=96,
    moe_intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=4,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=12,
    n_routed_experts=16,
    num_experts_per_tok=4,
    n_group=4,
    topk_group=2,
)


@dataclass(frozen=True)
class Family:
    """How to build one family's model, and its configuration file."""

    name: str
    build: Callable[[int], Any]
    config: dict[str, object]
    experts: int
    layers: range
    groups: int
    biased: bool


FAMILIES = {
    "deepseek_v3": Family(
        "deepseek_v3", lambda seed: Model(DEEPSEEK, seed), config_json(DEEPSEEK), 16, range(1, 4), 4, True
    ),
    "qwen3_moe": Family(
        "qwen3_moe",
        lambda seed: QwenModel(QwenShape(), seed),
        qwen_config(QwenShape()),
        16,
        range(4),
        1,
        False,
    ),
}


def widened(family: Family, tensors: Tensors) -> Any:
    """A float32 model of a checkpoint, for training and evaluation."""
    model = family.build(0)
    fill(model, tensors)
    return model
