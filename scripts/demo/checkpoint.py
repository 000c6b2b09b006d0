"""Save and load the demo's model as an ordinary sharded Hugging Face checkpoint.

The files are what a DeepSeek-V3 release has: one tensor an expert, bfloat16 weights, the selection bias in
float32, an index over the shards.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts.demo.model import Model, Shape

SHARDS = 4
BIAS = "e_score_correction_bias"
FUSED = ("gate_up_proj", "down_proj")


def config_json(shape: Shape) -> dict[str, object]:
    """The configuration, with every key that a released one has."""
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


def to_released(model: Model) -> dict[str, Tensor]:
    """The model's tensors under their released names, in float32."""
    released: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        released |= _split_experts(name, tensor) if _is_fused(name, tensor) else {_released(name): tensor}
    return released


def from_released(shape: Shape, released: dict[str, Tensor]) -> Model:
    """Build a model from tensors under released names."""
    model = Model(shape)
    state = {}
    for name, tensor in model.state_dict().items():
        if _is_fused(name, tensor):
            state[name] = _join_experts(name, shape, released)
        else:
            state[name] = released[_released(name)].float()
    model.load_state_dict(state)
    return model


def save(model: Model, folder: Path) -> None:
    """Write config.json, the shards and their index; the folder appears only when it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {
        name: tensor.to(torch.float32 if name.endswith(BIAS) else torch.bfloat16).contiguous()
        for name, tensor in to_released(model).items()
    }
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_shards(tensors, total), start=1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        save_file({name: tensors[name] for name in names}, partial / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    _write_json(partial / "config.json", config_json(model.shape))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(partial / "model.safetensors.index.json", index)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load(folder: Path) -> Model:
    """Load what `save` wrote, widened to float32 for training."""
    config = json.loads((folder / "config.json").read_text())
    shape = Shape(**{field.name: config[field.name] for field in fields(Shape)})
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model-*.safetensors")):
        tensors |= load_file(file)
    return from_released(shape, tensors)


def _is_fused(name: str, tensor: Tensor) -> bool:
    return name.endswith(FUSED) and tensor.dim() == 3


def _released(name: str) -> str:
    return name if name.startswith("lm_head") else f"model.{name}"


def _expert_prefix(name: str, expert: int) -> str:
    return f"model.{name.rsplit('.', 1)[0]}.experts.{expert}"


def _split_experts(name: str, fused: Tensor) -> dict[str, Tensor]:
    """Cut a fused [E, in, out] tensor into the released [out, in] matrices."""
    roles = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
    return {
        f"{_expert_prefix(name, expert)}.{role}.weight": part.T
        for expert, matrix in enumerate(fused)
        for role, part in zip(roles, matrix.chunk(len(roles), dim=-1), strict=True)
    }


def _join_experts(name: str, shape: Shape, released: dict[str, Tensor]) -> Tensor:
    roles = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
    matrices = [
        torch.cat([released[f"{_expert_prefix(name, expert)}.{role}.weight"].T for role in roles], dim=-1)
        for expert in range(shape.n_routed_experts)
    ]
    return torch.stack(matrices).float()


def _shards(tensors: dict[str, Tensor], total: int) -> list[list[str]]:
    """Tensor names in order, cut where a shard has its share of the bytes."""
    shards: list[list[str]] = [[] for _ in range(SHARDS)]
    written = 0
    for name, tensor in tensors.items():
        shards[min(SHARDS - 1, written * SHARDS // total)].append(name)
        written += tensor.nbytes
    return shards


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
