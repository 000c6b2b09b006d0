"""Checkpoints: a model's tensors under released names, and ordinary Hugging Face folders of them.

The tensors are what a release has: one tensor an expert, bfloat16 weights, the selection bias in float32. Training
widens them into a model; the lab's surgery works on the dict.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scripts.training.model import Model, Shape

Tensors = dict[str, Tensor]
BIAS = "e_score_correction_bias"
FUSED = ("gate_up_proj", "down_proj")
SHARDS = 4  # of what `save` writes


def config_json(shape: Shape) -> dict[str, object]:
    """The configuration of a DeepSeek-V3-shaped model, with every key that a released one has."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **asdict(shape),
        "num_key_value_heads": shape.num_attention_heads,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "ep_size": 1,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 0,
        "rope_interleave": True,
        "rope_scaling": None,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def released(model: nn.Module) -> Tensors:
    """A model's tensors under released names, as they are stored; of any family."""
    tensors: Tensors = {}
    for name, tensor in model.state_dict().items():
        full = _released(name)
        tensors |= split_experts(full, tensor) if _is_fused(name, tensor) else {full: tensor}
    return {name: stored(name, tensor) for name, tensor in tensors.items()}


def stored(name: str, tensor: Tensor) -> Tensor:
    """A tensor in the dtype it is stored in."""
    return tensor.detach().to(torch.float32 if name.endswith(BIAS) else torch.bfloat16).contiguous().clone()


def fill(model: nn.Module, tensors: Tensors) -> None:
    """Put released tensors into a model, in float32."""
    state = {}
    for name, tensor in model.state_dict().items():
        full = _released(name)
        fused = _is_fused(name, tensor)
        state[name] = join_experts(full, len(tensor), tensors) if fused else tensors[full].float()
    model.load_state_dict(state)


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


def write(tensors: Tensors, config: Mapping[str, object], folder: Path, shards: int = 1) -> None:
    """Write a checkpoint folder, with an index where it has several shards; it appears only when complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_shards(tensors, shards), start=1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        save_file({name: tensors[name].contiguous() for name in names}, partial / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    _write_json(partial / "config.json", config)
    if shards > 1:
        index = {"metadata": {"total_size": _size(tensors)}, "weight_map": weight_map}
        _write_json(partial / "model.safetensors.index.json", index)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def read(folder: Path) -> Tensors:
    """The tensors of a checkpoint folder."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def save(model: Model, folder: Path) -> None:
    """Write a DeepSeek-V3-shaped model as a sharded checkpoint."""
    write(released(model), config_json(model.shape), folder, SHARDS)


def load(folder: Path) -> Model:
    """Load what `save` wrote, widened to float32 for training."""
    config = json.loads((folder / "config.json").read_text())
    model = Model(Shape(**{field.name: config[field.name] for field in fields(Shape)}))
    fill(model, read(folder))
    return model


def _released(name: str) -> str:
    return name if name.startswith("lm_head") else f"model.{name}"


def _is_fused(name: str, tensor: Tensor) -> bool:
    return name.endswith(FUSED) and tensor.dim() == 3


def _roles(name: str) -> tuple[str, ...]:
    return ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)


def _size(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _shards(tensors: Tensors, count: int) -> list[list[str]]:
    """Tensor names in order, cut where a shard has its share of the bytes."""
    shards: list[list[str]] = [[] for _ in range(count)]
    written, total = 0, _size(tensors)
    for name, tensor in tensors.items():
        shards[min(count - 1, written * count // total)].append(name)
        written += tensor.nbytes
    return shards


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
