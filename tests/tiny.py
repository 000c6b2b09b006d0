"""Tiny randomised transformers models on disk, and what transformers itself computes from them.

`CASES` names every variant that is tested. `save` writes one as an ordinary checkpoint; `oracle` runs the
reference on a saved checkpoint with eager attention and eager experts, and records every routing decision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.families.registry import resolve
from moe_atlas.families.spec import ModelSpec

logging.set_verbosity_error()
logging.disable_progress_bar()

BASE: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
QWEN = {"moe_intermediate_size": 12, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True}
DEEPSEEK = {
    "num_key_value_heads": 4, "moe_intermediate_size": 12, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 1.7,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1, "q_lora_rank": 10, "kv_lora_rank": 14, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6, "v_head_dim": 10, "num_hidden_layers": 3,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0,
    "mscale": 0.9, "mscale_all_dim": 0.7, "beta_fast": 8.0, "beta_slow": 1.0,
}  # fmt: skip

QWEN2 = QWEN | {"norm_topk_prob": False, "shared_expert_intermediate_size": 20}
MIXTRAL = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14}
OLMOE = {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 14, "norm_topk_prob": False}
DEEPSEEK2 = DEEPSEEK | {
    "topk_method": "group_limited_greedy",
    "norm_topk_prob": False,
    "first_k_dense_replace": 1,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("qwen3_moe", QWEN | {"head_dim": 10}),
    "qwen3_moe-raw-weights": ("qwen3_moe", QWEN | {"norm_topk_prob": False, "attention_bias": True}),
    "qwen3_moe-mixed-layers": (
        "qwen3_moe",
        QWEN | {"num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [1],
        "tie_word_embeddings": True},
    ),
    "qwen3_moe-window": ("qwen3_moe", QWEN | {"use_sliding_window": True, "sliding_window": 5}),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK),
    "deepseek_v3-yarn": ("deepseek_v3", DEEPSEEK | {"rope_parameters": YARN, "rms_norm_eps": 1e-5}),
    "deepseek_v3-plain": (
        "deepseek_v3",
        DEEPSEEK | {
            "n_group": 1, "topk_group": 1, "q_lora_rank": None, "norm_topk_prob": False,
            "rope_interleave": False,
            "attention_bias": True, "first_k_dense_replace": 0, "num_hidden_layers": 2,
        },
    ),
    "qwen2_moe": ("qwen2_moe", QWEN2),
    "qwen2_moe-renormalised": (
        "qwen2_moe",
        QWEN2 | {"norm_topk_prob": True, "qkv_bias": False, "num_hidden_layers": 3, "mlp_only_layers": [0]},
    ),
    "qwen2_moe-window": (
        "qwen2_moe",
        QWEN2 | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3, "num_hidden_layers": 4},
    ),
    "mixtral": ("mixtral", MIXTRAL),
    "mixtral-window": ("mixtral", MIXTRAL | {"sliding_window": 6, "head_dim": 12}),
    "olmoe": ("olmoe", OLMOE),
    "olmoe-clipped": (
        "olmoe", OLMOE | {"clip_qkv": 0.8, "norm_topk_prob": True, "attention_bias": True, "num_key_value_heads": 4}
    ),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK2),
    "deepseek_v2-lite": (
        "deepseek_v2",
        DEEPSEEK2 | {
            "topk_method": "greedy", "n_group": None, "topk_group": None, "q_lora_rank": None, "mlp_bias": True,
            "rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}, "first_k_dense_replace": 0,
        },
    ),
    "deepseek_v2-yarn": ("deepseek_v2", DEEPSEEK2 | {"rope_parameters": YARN, "attention_bias": True}),
}  # fmt: skip

SLOW: frozenset[str] = frozenset()
"""Cases that only `make parity` runs."""
FAST = [case for case in CASES if case not in SLOW]
INEXACT: dict[str, str] = {}
"""Cases that are not bit-exact in bfloat16, with the reason."""


@dataclass
class Oracle:
    """What the reference computed: logits [W, S, V] float32, and per routed layer the sets and combine
    weights [T, K]."""

    logits: Tensor
    sets: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)
    router_logits: dict[int, Tensor] = field(default_factory=dict)


def tokens(windows: int = 2, length: int = 24, vocab: int = 48, seed: int = 0) -> Tensor:
    """Token ids, int64 [W, S]."""
    return torch.randint(0, vocab, (windows, length), generator=torch.Generator().manual_seed(seed))


def randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter and every stored buffer a random value that matters: gains near 1, biases near
    0.3."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name]
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim >= 2:
            value = noise * 1.5 / tensor.shape[-1] ** 0.5
        else:
            value = 0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        tensor.copy_(value.to(tensor.dtype))


def save(
    case: str, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Path:
    """Write one case as a checkpoint and return its folder."""
    model_type, options = CASES[case]
    config = AutoConfig.for_model(model_type, **(BASE | options | changes))
    model = AutoModelForCausalLM.from_config(config).eval()
    randomise(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if dtype != torch.float32:  # reload, so that what the reference keeps in float32 stays float32 on disk
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    return folder


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The reference model with eager attention and eager experts."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    model.set_experts_implementation("eager")
    return model


@torch.no_grad()
def oracle(model: nn.Module, tokens_WS: Tensor) -> Oracle:
    """Run the reference and record its routers."""
    result = Oracle(torch.empty(0))
    handles = [m.register_forward_hook(_recorder(result, name)) for name, m in model.named_modules()]
    result.logits = model(tokens_WS, use_cache=False).logits.float()
    for handle in handles:
        handle.remove()
    return result


def _recorder(result: Oracle, name: str) -> Any:
    layer = re.search(r"\.(?:layers|blocks)\.(\d+)\.", name + ".")

    def record(module: nn.Module, args: Any, out: Any) -> None:
        if layer and isinstance(out, tuple) and len(out) == 3 and _is_choice(out):
            index = int(layer[1])
            result.router_logits[index] = out[0].float()
            result.weights[index], result.sets[index] = out[1].float(), out[2]

    return record


def _is_choice(out: tuple[Any, ...]) -> bool:
    return (
        all(isinstance(o, Tensor) for o in out)
        and out[2].dtype == torch.int64
        and out[1].shape == out[2].shape
    )


def open_tiny(folder: Path) -> tuple[ModelSpec, Reader]:
    """Spec and reader of a saved tiny model."""
    checkpoint = open_checkpoint(folder)
    return resolve(checkpoint), Reader(checkpoint)
