"""The benchmark's checkpoints: OLMoE-shaped, random, written tensor by tensor so that building needs little memory.

Every layer has one file for its routed object and one for attention, so that variants which share tensors share files
(hard links): a shallower model, or a tune that left the routed object alone.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

NOISE = 0.03  # of a tuned tensor, relative to the standard deviation of what it was
ROWS = 0.1  # by which the norms of a matrix's rows differ, as training makes them


@dataclass(frozen=True)
class Shape:
    """What is built; names as in config.json."""

    hidden_size: int = 2048
    intermediate_size: int = 1024
    num_experts: int = 64
    num_experts_per_tok: int = 8
    num_hidden_layers: int = 4
    num_attention_heads: int = 16
    vocab_size: int = 50304

    def config(self) -> dict[str, object]:
        """The whole config.json."""
        return {
            "architectures": ["OlmoeForCausalLM"],
            "model_type": "olmoe",
            **self.__dict__,
            "num_key_value_heads": self.num_attention_heads,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "clip_qkv": None,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "norm_topk_prob": False,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "router_aux_loss_coef": 0.01,
            "output_router_logits": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "dtype": "bfloat16",
            "use_cache": False,
        }


FULL = Shape()
DEEP = Shape(num_experts=16, num_hidden_layers=16, vocab_size=8192)
SMALL = Shape(256, 128, 8, 2, 2, 4, 512)

Sizes = dict[str, tuple[int, ...]]


def ends(shape: Shape) -> Sizes:
    """Tensors outside the layers."""
    table = (shape.vocab_size, shape.hidden_size)
    return {
        "model.embed_tokens.weight": table,
        "model.norm.weight": (shape.hidden_size,),
        "lm_head.weight": table,
    }


def attention_part(shape: Shape, layer: int) -> Sizes:
    """Attention of one layer and its norms."""
    prefix, d = f"model.layers.{layer}.", shape.hidden_size
    attention = {f"{prefix}self_attn.{role}_proj.weight": (d, d) for role in "qkvo"}
    norms = ("input_layernorm", "self_attn.q_norm", "self_attn.k_norm")
    return {**attention, **{f"{prefix}{name}.weight": (d,) for name in norms}}


def routed(shape: Shape, layer: int) -> Sizes:
    """The norm in front of the experts of one layer, their router, and the experts."""
    prefix = f"model.layers.{layer}."
    d, h = shape.hidden_size, shape.intermediate_size
    matrices = {"gate_proj": (h, d), "up_proj": (h, d), "down_proj": (d, h)}
    weights = {
        f"{prefix}mlp.experts.{expert}.{name}.weight": size
        for expert in range(shape.num_experts)
        for name, size in matrices.items()
    }
    gate = {f"{prefix}mlp.gate.weight": (shape.num_experts, d)}
    return {f"{prefix}post_attention_layernorm.weight": (d,), **gate, **weights}


def files(shape: Shape) -> dict[str, Sizes]:
    """File name to its tensors."""
    names: dict[str, Sizes] = {"ends.safetensors": ends(shape)}
    for layer in range(shape.num_hidden_layers):
        names[f"layer-{layer:02d}-attention.safetensors"] = attention_part(shape, layer)
        names[f"layer-{layer:02d}-routed.safetensors"] = routed(shape, layer)
    return names


def draw(name: str, size: tuple[int, ...], *, noise: float) -> Tensor:
    """A tensor, rows of unlike norms, and with noise as tuned; bfloat16, the same in every run."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    gain = len(size) == 1
    spread = 0.1 if gain else 1.0 if "embed" in name else size[-1] ** -0.5
    drawn = torch.randn(size, generator=generator)
    if not gain:
        drawn.mul_(torch.randn(size[0], 1, generator=generator).mul_(ROWS).exp_())
    if noise:
        drawn.add_(torch.randn(size, generator=generator), alpha=noise)
    return drawn.mul_(spread).add_(1.0 if gain else 0.0).bfloat16()


def write_file(path: Path, sizes: Sizes, noise: float) -> None:
    """One safetensors file, a tensor at a time."""
    header, offset = {}, 0
    for name, size in sizes.items():
        count = 2 * torch.Size(size).numel()
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, offset + count]}
        offset += count
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name, size in sizes.items():
            file.write(draw(name, size, noise=noise).view(torch.uint8).numpy().data)


def write(folder: Path, shape: Shape, *, tuned: Iterable[str] = (), source: Path | None = None) -> Path:
    """A checkpoint folder, kept when it is there: the files named in `tuned` with noise, the others of `source`."""
    if (folder / "config.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    moved = set(tuned)
    for name, sizes in files(shape).items():
        if source is not None and name not in moved:
            os.link(source / name, folder / name)
        else:
            write_file(folder / name, sizes, NOISE if name in moved else 0.0)
        weight_map |= dict.fromkeys(sizes, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))
    return folder


def shallower(folder: Path, source: Path, shape: Shape) -> Path:
    """The first layers of a deeper checkpoint, sharing its files."""
    return write(folder, shape, source=source)


def frozen_routing(shape: Shape) -> set[str]:
    """What a tune with a frozen routed object changes: attention, embedding and head, from the first layer on."""
    return {name for name in files(shape) if "routed" not in name}


def upper_attention(shape: Shape) -> set[str]:
    """What a tune of the upper half's attention changes."""
    first = shape.num_hidden_layers // 2
    return {f"layer-{layer:02d}-attention.safetensors" for layer in range(first, shape.num_hidden_layers)}
