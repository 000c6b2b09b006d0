"""A float64 forward pass that is not ours: transformers for the residual stream, plain NumPy for router and experts.

Nothing here, nor in the modules beside it, imports the product's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

Array = np.ndarray
MASKED = -np.inf


@dataclass
class Layer:
    """One routed layer of one checkpoint: what it is, and the residual in front of it, window by window."""

    index: int
    family: str
    config: Any
    norm: str
    eps: float
    gain: Array | None
    shift: Array | None
    router: Array
    router_bias: Array | None
    selection_bias: Array | None
    experts: list[tuple[Array, ...]]
    states: list[Array]
    router_gain: Array | None = None
    expert_scale: Array | None = None

    @property
    def top_k(self) -> int:
        names = ("num_experts_per_tok", "moe_k", "top_k_experts")
        return int(next(getattr(self.config, name) for name in names if getattr(self.config, name, None)))

    @property
    def tangent(self) -> bool:
        """Whether an expert's output has a visible part: there is a z, and no norm follows the experts."""
        return self.norm != "none" and self.family != "gemma4_text"

    def standardise(self, x: Array) -> Array | None:
        if self.norm == "none":
            return None
        if self.norm == "layer":
            x = x - x.mean()
        return x / np.sqrt(np.mean(x * x) + self.eps)

    def gate(self, z: Array | None, x: Array) -> Array:
        if z is None:
            return x
        return self.gain * z + (0.0 if self.shift is None else self.shift)

    def read(self, z: Array | None, g: Array) -> Array:
        """What the router reads: as the experts, or z through a gain of its own."""
        return g if self.router_gain is None else z * self.router_gain / np.sqrt(len(z))

    def visible(self, z: Array | None, u: Array) -> Array:
        """P_z u; for a LayerNorm the mean is not visible either."""
        v = u - z * (z @ u) / len(z)
        return v - v.mean() if self.norm == "layer" else v

    def expert(self, e: int, g: Array) -> Array:
        if self.family == "gpt_oss":
            gate_up, gate_up_bias, down, down_bias = self.experts[e]
            both = g @ gate_up + gate_up_bias
            limit, alpha = self.config.swiglu_limit, self.config.swiglu_alpha
            gate, up = np.minimum(both[::2], limit), np.clip(both[1::2], -limit, limit)
            return ((up + 1.0) * gate * sigmoid(alpha * gate)) @ down + down_bias
        gate, up, down = self.experts[e]
        hidden = gate @ g
        if self.family == "gemma4_text":
            inner = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
            return down @ (0.5 * hidden * (1 + np.tanh(inner)) * (up @ g))
        return down @ (hidden * sigmoid(hidden) * (up @ g))


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x: Array) -> Array:
    power = np.exp(x - x.max())
    return power / power.sum()


@dataclass
class Decision:
    """What a router decides for one token."""

    logits: Array
    rho: Array
    scores: Array
    chosen: list[int]
    rival: int | None
    margin: float | None
    group_margin: float | None
    weights: list[float]

    def weight(self, e: int) -> float:
        return self.weights[self.chosen.index(e)] if e in self.chosen else 0.0


def decide(layer: Layer, g: Array) -> Decision:
    """Route one token, whose router reads g, by the family's rule, as its own reference code reads."""
    logits = layer.router @ g + (0.0 if layer.router_bias is None else layer.router_bias)
    gated = layer.family in ("deepseek_v3", "llama4_text")
    rho = sigmoid(logits) / sigmoid(logits).sum() if gated else softmax(logits)
    scores, group_margin = logits.copy(), None
    if layer.family == "deepseek_v3":
        scores, group_margin = _kept_groups(layer, sigmoid(logits) + layer.selection_bias)
    elif layer.family == "ernie4_5_moe":
        scores = softmax(logits) + layer.selection_bias
    order = sorted(range(len(scores)), key=lambda e: (-scores[e], e))
    k = layer.top_k
    chosen = order[:k]
    rival = order[k] if len(order) > k and scores[order[k]] > MASKED else None
    margin = None if rival is None else float(scores[chosen[-1]] - scores[rival])
    return Decision(logits, rho, scores, chosen, rival, margin, group_margin, combine(layer, logits, chosen))


def _kept_groups(layer: Layer, scores: Array) -> tuple[Array, float | None]:
    groups, kept = layer.config.n_group, layer.config.topk_group
    if kept >= groups:
        return scores, None
    members = np.arange(len(scores)).reshape(groups, -1)
    ranks = [float(np.sort(scores[group])[-2:].sum()) for group in members]
    order = sorted(range(groups), key=lambda n: (-ranks[n], n))
    masked = scores.copy()
    for n in order[kept:]:
        masked[members[n]] = MASKED
    return masked, ranks[order[kept - 1]] - ranks[order[kept]]


def combine(layer: Layer, logits: Array, chosen: Sequence[int]) -> list[float]:
    """The family's combine weights of a given set, in its order."""
    family, config, chosen = layer.family, layer.config, list(chosen)
    if family == "deepseek_v3":
        raw = sigmoid(logits)[chosen]
        return list(raw / (raw.sum() + 1e-20) * config.routed_scaling_factor)
    if family in ("qwen3_moe", "olmoe", "flex_olmo"):
        raw = softmax(logits)[chosen]
        return list(raw / raw.sum() if config.norm_topk_prob else raw)
    if family == "gemma4_text":
        raw = softmax(logits)[chosen]
        return list(raw / raw.sum() * layer.expert_scale[chosen])
    if family == "ernie4_5_moe":
        raw = softmax(logits)[chosen]
        return list(raw / max(raw.sum(), config.moe_norm_min))
    if family in ("mixtral", "gpt_oss"):
        return list(softmax(logits[chosen]))
    if family == "llama4_text":
        return list(sigmoid(logits[chosen]))
    assert family == "phimoe"
    return _sparsemixer(logits, chosen, config.router_jitter_noise)


def _sparsemixer(logits: Array, chosen: list[int], jitter: float) -> list[float]:
    weights, open_ = [], logits.copy()
    for e in chosen:
        factor = np.maximum(np.abs(logits), logits[e])
        near = (logits[e] - logits) / factor <= 2 * jitter
        weights.append(float(softmax(np.where(near, open_, MASKED))[e]))
        open_[e] = MASKED
    return weights


@dataclass
class Reference:
    """One checkpoint on the probe windows: its routed layers and next-token log-probabilities."""

    layers: list[Layer]
    log_probs: list[Array]


@torch.no_grad()
def run(folder: Path, windows: Sequence[Array]) -> Reference:
    """Replay windows through transformers in float64 and cut it open in front of every router."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    model.set_experts_implementation("eager")
    layers: list[Layer] = []
    for index, block in enumerate(model.model.layers):
        moe = block if hasattr(block, "experts") else getattr(block, "feed_forward", None) or block.mlp
        if hasattr(moe, "experts"):
            layers.append(_layer(index, model.config, block, moe))
            post_norm = layers[-1].norm == "none"
            watched = moe if post_norm else _norm_in_front(block)
            watched.register_forward_pre_hook(_recorder(layers[-1]))
    log_probs = []
    for window in windows:
        logits = model(torch.from_numpy(np.asarray(window))[None], use_cache=False).logits[0].double()
        log_probs.append(torch.log_softmax(logits, -1).numpy())
    return Reference(layers, log_probs)


def _norm_in_front(block: Any) -> Any:
    return getattr(block, "pre_feedforward_layernorm_2", None) or block.post_attention_layernorm


def _recorder(layer: Layer) -> Callable[..., None]:
    def record(module: Any, args: Any) -> None:
        layer.states.append(args[0].detach().double().reshape(-1, args[0].shape[-1]).numpy().copy())

    return record


def _layer(index: int, config: Any, block: Any, moe: Any) -> Layer:
    family = config.model_type
    state = {
        name: tensor.double().numpy()
        for name, tensor in moe.state_dict().items()
        if tensor.is_floating_point()
    }
    router = next(n for n in ("gate.weight", "router.weight", "router.proj.weight") if n in state)
    bias = [tensor.reshape(-1) for name, tensor in state.items() if name.endswith("e_score_correction_bias")]
    norm = _norm_in_front(block)
    kind = {"flex_olmo": "none", "phimoe": "layer"}.get(family, "rms")
    return Layer(
        index=index,
        family=family,
        config=config,
        norm=kind,
        eps=getattr(norm, "variance_epsilon", None) or norm.eps,
        gain=None if kind == "none" else norm.weight.double().numpy(),
        shift=norm.bias.double().numpy() if kind == "layer" else None,
        router=state[router],
        router_bias=state.get("router.bias"),
        selection_bias=bias[0] if bias else None,
        experts=_experts(family, state),
        states=[],
        router_gain=state.get("router.scale"),
        expert_scale=state.get("router.per_expert_scale"),
    )


def _experts(family: str, state: dict[str, Array]) -> list[tuple[Array, ...]]:
    up, down = state["experts.gate_up_proj"], state["experts.down_proj"]
    if family == "gpt_oss":
        biases = state["experts.gate_up_proj_bias"], state["experts.down_proj_bias"]
        return [(up[e], biases[0][e], down[e], biases[1][e]) for e in range(len(up))]
    if family == "llama4_text":  # stored transposed: [E, D, 2H] and [E, H, D]
        up, down = up.transpose(0, 2, 1), down.transpose(0, 2, 1)
    half = up.shape[1] // 2
    return [(up[e, :half], up[e, half:], down[e]) for e in range(len(up))]
