"""A Qwen3-MoE-shaped decoder for training, beside the DeepSeek-V3-shaped one of scripts.training.

Grouped-query attention with normed queries and keys, every layer routed, softmax over the chosen experts, no
shared expert and no bias. An auxiliary loss balances the load, as in the released family.

Shapes as in that model; A attention heads, B key-value heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.training.decoder import Decoder, Layer, Norm, Routed

BALANCE = 0.01  # weight of the auxiliary loss


@dataclass(frozen=True)
class QwenShape:
    """Sizes, named as in the released configuration file."""

    vocab_size: int = 256
    hidden_size: int = 48
    intermediate_size: int = 96
    moe_intermediate_size: int = 24
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 12
    num_experts: int = 16
    num_experts_per_tok: int = 4
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 512

    @property
    def n_routed_experts(self) -> int:
        """DeepSeek-V3's name for the number of experts."""
        return self.num_experts


class Balance(torch.autograd.Function):
    """Pass a tensor through and send a loss its gradient beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        """Return x as it is."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The loss has weight one."""
        return grad, torch.ones(())


class Attention(nn.Module):
    """Grouped-query attention; halves of a head are rotated against each other."""

    def __init__(self, shape: QwenShape) -> None:
        super().__init__()
        self.shape = shape
        width, size = shape.hidden_size, shape.head_dim
        self.q_proj = nn.Linear(width, shape.num_attention_heads * size, bias=False)
        self.k_proj = nn.Linear(width, shape.num_key_value_heads * size, bias=False)
        self.v_proj = nn.Linear(width, shape.num_key_value_heads * size, bias=False)
        self.o_proj = nn.Linear(shape.num_attention_heads * size, width, bias=False)
        self.q_norm = Norm(size, shape.rms_norm_eps)
        self.k_norm = Norm(size, shape.rms_norm_eps)

    def forward(self, x_NSD: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
        """Attend causally; [N, S, D] in and out."""
        n, s, _ = x_NSD.shape
        q, k, v = (
            part(x_NSD).view(n, s, -1, self.shape.head_dim)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = rotate_halves(self.q_norm(q).transpose(1, 2), cos_SR, sin_SR)
        k = rotate_halves(self.k_norm(k).transpose(1, 2), cos_SR, sin_SR)
        repeats = self.shape.num_attention_heads // self.shape.num_key_value_heads
        k, v = (part.repeat_interleave(repeats, dim=1) for part in (k, v.transpose(1, 2)))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        written_NSD: Tensor = self.o_proj(out.transpose(1, 2).reshape(n, s, -1))
        return written_NSD


def rotate_halves(x: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Rotate the first half of a head against the second."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos_SR - second * sin_SR, second * cos_SR + first * sin_SR], dim=-1)


class Moe(Routed):
    """Routed experts with an auxiliary loss that balances their load."""

    def __init__(self, shape: QwenShape) -> None:
        width, experts = shape.hidden_size, shape.num_experts
        super().__init__(nn.Linear(width, experts, bias=False), experts, width, shape.moe_intermediate_size)
        self.k = shape.num_experts_per_tok

    def forward(self, x_TD: Tensor) -> Tensor:
        """The routed experts' weighted sum; [T, D] in and out."""
        share_TE = self.gate(x_TD).softmax(-1)
        weights_TK, experts_TK = share_TE.topk(self.k, dim=-1)
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        out_TD = self.weighted_sum(x_TD, experts_TK, weights_TK)
        routed_E = self.load_E / (len(x_TD) * self.k)
        loss = BALANCE * len(share_TE[0]) * (routed_E * share_TE.mean(0)).sum()
        balanced_TD: Tensor = Balance.apply(out_TD, loss)
        return balanced_TD


class QwenModel(Decoder):
    """The whole decoder; every layer is routed."""

    def __init__(self, shape: QwenShape, seed: int = 0) -> None:
        super().__init__(shape, seed, partial(nn.Linear, bias=False), shape.head_dim)

    def layer(self, index: int) -> Layer:
        """Return a new layer with grouped-query attention and a routed block."""
        shape: QwenShape = self.shape
        return Layer(shape.hidden_size, shape.rms_norm_eps, Attention(shape), Moe(shape))


def qwen_config(shape: QwenShape) -> dict[str, object]:
    """The configuration, with the keys that a released one has."""
    sizes = {name: getattr(shape, name) for name in shape.__dataclass_fields__}
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **sizes,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "decoder_sparse_step": 1,
        "hidden_act": "silu",
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
    }
