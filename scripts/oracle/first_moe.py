"""DeepSeekMoE and Ling 1.5 in plain float64 over two tiny checkpoints: no class of transformers reads them.

Written from the published modelling code's equations: RMS norm, rotation of two halves, softmax over all experts, the
best k of them, their weights divided by their sum where `norm_topk_prob` says so, shared experts added as they are.
Nothing here imports the product.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

COMMON: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "moe_intermediate_size": 12, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_experts_per_tok": 3, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 700.0, "tie_word_embeddings": False, "rope_scaling": None, "pretraining_tp": 1, "use_cache": True,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek": COMMON | {
        "model_type": "deepseek", "n_routed_experts": 8, "n_shared_experts": 2, "norm_topk_prob": False,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "scoring_func": "softmax", "attention_bias": False,
        "num_key_value_heads": 4, "aux_loss_alpha": 0.001, "seq_aux": True,
    },
    "bailing_moe": COMMON | {
        "model_type": "bailing_moe", "num_experts": 8, "num_shared_experts": 2, "norm_topk_prob": True,
        "first_k_dense_replace": 1, "use_bias": False, "use_qkv_bias": True, "num_key_value_heads": 2,
        "norm_head": False, "norm_softmax": False, "embedding_dropout": 0.0, "output_dropout": 0.0,
    },
}  # fmt: skip


@dataclass
class Found:
    """Logits [W, S, V], and per routed layer the chosen experts [T, K] with their weights."""

    logits: Tensor
    sets: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)


def save(
    kind: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """Write a checkpoint with random weights under the names of the release, and return its folder."""
    config = CONFIGS[kind] | changes
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        gain = 1.0 + 0.3 * noise if "norm" in name else 0.3 * noise
        tensors[name] = (noise * 1.5 / shape[-1] ** 0.5 if len(shape) > 1 else gain).to(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every stored tensor and its shape."""
    d, ling = c["hidden_size"], c["model_type"] == "bailing_moe"
    size = d // c["num_attention_heads"]
    keys = c["num_key_value_heads"] * size
    found: dict[str, tuple[int, ...]] = {
        "model.word_embeddings.weight" if ling else "model.embed_tokens.weight": (c["vocab_size"], d),
        "model.norm.weight": (d,),
        "lm_head.weight": (c["vocab_size"], d),
    }
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found |= {f"{at}input_layernorm.weight": (d,), f"{at}post_attention_layernorm.weight": (d,)}
        if ling:
            found |= {
                f"{at}attention.query_key_value.weight": (d + 2 * keys, d),
                f"{at}attention.dense.weight": (d, d),
            }
            found |= {f"{at}attention.query_key_value.bias": (d + 2 * keys,)} if c["use_qkv_bias"] else {}
        else:
            rows = {"q": d, "k": keys, "v": keys, "o": d}
            found |= {f"{at}self_attn.{part}_proj.weight": (row, d) for part, row in rows.items()}
            found |= {
                f"{at}self_attn.{part}_proj.bias": (row,) for part, row in rows.items() if c["attention_bias"]
            }
        if layer < c["first_k_dense_replace"]:
            found |= perceptron(f"{at}mlp", c["intermediate_size"], d)
            continue
        width = c["moe_intermediate_size"]
        experts, shared = (
            (c.get("num_experts") or c["n_routed_experts"]),
            (c.get("num_shared_experts") or c.get("n_shared_experts")),
        )
        found |= {f"{at}mlp.gate.weight": (experts, d)} | perceptron(
            f"{at}mlp.shared_experts", width * shared, d
        )
        for expert in range(experts):
            found |= perceptron(f"{at}mlp.experts.{expert}", width, d)
    return found


def perceptron(at: str, width: int, d: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{at}.gate_proj.weight": (width, d),
        f"{at}.up_proj.weight": (width, d),
        f"{at}.down_proj.weight": (d, width),
    }


def forward(folder: Path, tokens_WS: Tensor) -> Found:
    """The whole model in float64."""
    c: dict[str, Any] = json.loads((folder / "config.json").read_text())
    w = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    table = w.get("model.word_embeddings.weight", w.get("model.embed_tokens.weight"))
    assert table is not None
    x, found = table[tokens_WS], Found(torch.empty(0))
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        x = x + attention(c, w, at, rms(x, w[f"{at}input_layernorm.weight"], c["rms_norm_eps"]))
        y = rms(x, w[f"{at}post_attention_layernorm.weight"], c["rms_norm_eps"])
        if layer < c["first_k_dense_replace"]:
            x = x + mlp(w, f"{at}mlp", y)
            continue
        probabilities = torch.softmax(y @ w[f"{at}mlp.gate.weight"].T, -1)
        weights, chosen = probabilities.topk(c["num_experts_per_tok"], -1)
        if c["norm_topk_prob"]:
            weights = weights / weights.sum(-1, keepdim=True)
        out = mlp(w, f"{at}mlp.shared_experts", y)
        for expert in range(probabilities.shape[-1]):
            share = (weights * (chosen == expert)).sum(-1, keepdim=True)
            out = out + share * mlp(w, f"{at}mlp.experts.{expert}", y)
        found.sets[layer], found.weights[layer] = chosen.flatten(0, 1), weights.flatten(0, 1)
        x = x + out
    found.logits = rms(x, w["model.norm.weight"], c["rms_norm_eps"]) @ w["lm_head.weight"].T
    return found


def rms(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return gain * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def mlp(w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    gate, up = x @ w[f"{at}.gate_proj.weight"].T, x @ w[f"{at}.up_proj.weight"].T
    return (gate * torch.sigmoid(gate) * up) @ w[f"{at}.down_proj.weight"].T


def attention(c: dict[str, Any], w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    """Causal softmax attention, head by head."""
    heads, shared = c["num_attention_heads"], c["num_key_value_heads"]
    size = c["hidden_size"] // heads
    if c["model_type"] == "bailing_moe":
        joined = x @ w[f"{at}attention.query_key_value.weight"].T
        joined = joined + w.get(f"{at}attention.query_key_value.bias", torch.zeros(()))
        q, k, v = joined.split([heads * size, shared * size, shared * size], -1)
        out_name = f"{at}attention.dense"
    else:
        q, k, v = (
            x @ w[f"{at}self_attn.{part}_proj.weight"].T
            + w.get(f"{at}self_attn.{part}_proj.bias", torch.zeros(()))
            for part in "qkv"
        )
        out_name = f"{at}self_attn.o_proj"
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    outputs = []
    for head in range(heads):
        key = head * shared // heads
        q_h, k_h, v_h = (
            q[..., head * size :][..., :size],
            k[..., key * size :][..., :size],
            v[..., key * size :][..., :size],
        )
        scores = turned(q_h, c["rope_theta"]) @ turned(k_h, c["rope_theta"]).transpose(-1, -2) / size**0.5
        outputs.append(torch.softmax(scores.masked_fill(later, float("-inf")), -1) @ v_h)
    return torch.cat(outputs, -1) @ w[f"{out_name}.weight"].T + w.get(f"{out_name}.bias", torch.zeros(()))


def turned(x: Tensor, theta: float) -> Tensor:
    """Rotate dimension i of the first half with dimension i of the second, by position · theta^(-2i / size)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1]).double()[:, None] * theta ** (-torch.arange(half).double() / half)
    one, other = x[..., :half], x[..., half:]
    return torch.cat((one * angle.cos() - other * angle.sin(), other * angle.cos() + one * angle.sin()), -1)
