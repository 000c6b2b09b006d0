"""Adapters that PEFT trains, and what PEFT itself makes of them: the merged checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from moe_atlas.adapters.source import AdaptedSource, open_adapter
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.loading.registry import resolve
from scripts.oracle import tiny

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def train(base: Path, folder: Path, *, seed: int = 0, size: float = 0.2, **options: Any) -> Path:
    """Write an adapter of a base with random factors, as PEFT saves it after a training."""
    model = load(base)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**({"r": 4, "lora_alpha": 6} | options)))
    _randomise(wrapped, seed, size)
    wrapped.save_pretrained(folder)
    return folder


@torch.no_grad()
def _randomise(model: nn.Module, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        if not tensor.requires_grad:
            continue
        noise = size * torch.randn(tensor.shape, generator=generator)
        kept = tensor.float() if "magnitude" in name or "modules_to_save" in name else 0.0
        tensor.copy_((kept + noise).to(tensor.dtype))


def merge(base: Path, adapter: Path, folder: Path) -> Path:
    """Let PEFT merge an adapter into its base and save the result."""
    merged = peft.PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
    merged.save_pretrained(folder)
    return folder


def load(base: Path) -> Any:
    """The base as its class, in the dtype in which it is stored."""
    return tiny.AutoModelForCausalLM.from_pretrained(base, dtype="auto")


def matched(base: Path, adapter: Path, *layouts: str, reading: str = "merged") -> AdaptedSource:
    """Open a base and an adapter as the audit does."""
    opened = open_checkpoint(base)
    return open_adapter(opened, resolve(opened), adapter, reading, layouts)
