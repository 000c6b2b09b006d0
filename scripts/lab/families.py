"""The lab's two families: shapes, and checkpoints as released tensors on disk.

A checkpoint is a dict of released names to tensors; training widens it into a model, surgery works on the dict.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scripts.demo.checkpoint import config_json
from scripts.demo.model import Model, Shape
from scripts.lab.qwen import QwenModel, QwenShape, qwen_config

Tensors = dict[str, Tensor]
BIAS = "e_score_correction_bias"
FUSED = ("gate_up_proj", "down_proj")

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


def released(model: nn.Module) -> Tensors:
    """A model's tensors under released names: one tensor an expert, bfloat16, the selection bias float32."""
    tensors: Tensors = {}
    for name, tensor in model.state_dict().items():
        full = name if name.startswith("lm_head") else f"model.{name}"
        parts = split_experts(full, tensor) if _is_fused(name, tensor) else {full: tensor}
        tensors |= parts
    return {name: stored(name, tensor) for name, tensor in tensors.items()}


def stored(name: str, tensor: Tensor) -> Tensor:
    """A tensor in the dtype it is stored in."""
    return tensor.detach().to(torch.float32 if name.endswith(BIAS) else torch.bfloat16).contiguous().clone()


def widened(family: Family, tensors: Tensors) -> Any:
    """A float32 model of a checkpoint, for training and evaluation."""
    model = family.build(0)
    state = {}
    for name, tensor in model.state_dict().items():
        full = name if name.startswith("lm_head") else f"model.{name}"
        state[name] = (
            join_experts(full, len(tensor), tensors) if _is_fused(name, tensor) else tensors[full].float()
        )
    model.load_state_dict(state)
    return model


def _is_fused(name: str, tensor: Tensor) -> bool:
    return name.endswith(FUSED) and tensor.dim() == 3


def _roles(name: str) -> tuple[str, ...]:
    return ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)


def split_experts(name: str, fused: Tensor) -> Tensors:
    """Cut a fused [E, in, out] tensor into the released [out, in] matrices."""
    prefix, roles = name.rsplit(".", 1)[0], _roles(name)
    return {
        f"{prefix}.experts.{expert}.{role}.weight": part.T
        for expert, matrix in enumerate(fused)
        for role, part in zip(roles, matrix.chunk(len(roles), dim=-1), strict=True)
    }


def join_experts(name: str, experts: int, tensors: Tensors) -> Tensor:
    """The inverse of `split_experts`, in float32."""
    prefix, roles = name.rsplit(".", 1)[0], _roles(name)
    rows = [
        torch.cat([tensors[f"{prefix}.experts.{e}.{role}.weight"].float().T for role in roles], dim=-1)
        for e in range(experts)
    ]
    return torch.stack(rows)


def write(family: Family, tensors: Tensors, folder: Path) -> None:
    """A checkpoint folder of one shard; it appears only when it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, partial / "model.safetensors", {"format": "pt"}
    )
    (partial / "config.json").write_text(json.dumps(family.config, indent=2) + "\n")
    partial.rename(folder)


def read(folder: Path) -> Tensors:
    """The tensors of a checkpoint folder."""
    return load_file(folder / "model.safetensors")
