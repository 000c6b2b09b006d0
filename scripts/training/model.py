"""A compact DeepSeek-V3-shaped decoder, written for fast float32 training on two CPU cores.

It computes what `DeepseekV3ForCausalLM` computes: multi-head latent attention with interleaved
rotary pairs, a sigmoid router with a selection bias and group-limited top-k, one shared expert,
dense first layers.

Shapes: those of `scripts.training.decoder`; G groups, A attention heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.training.decoder import Decoder, Layer, Norm, Routed

# The released implementation fixes this epsilon for the two low-rank norms, whatever `rms_norm_eps` says.
LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """The sizes of the model, named as in the released configuration file."""

    vocab_size: int = 256
    hidden_size: int = 64
    intermediate_size: int = 160
    moe_intermediate_size: int = 32
    num_hidden_layers: int = 5
    first_k_dense_replace: int = 1
    num_attention_heads: int = 4
    q_lora_rank: int = 32
    kv_lora_rank: int = 24
    qk_nope_head_dim: int = 16
    qk_rope_head_dim: int = 8
    v_head_dim: int = 16
    n_routed_experts: int = 16
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.5
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 128  # what the demo trains on; further out the loss of the base doubles

    @property
    def routed_layers(self) -> range:
        """Indices of the layers that have a router."""
        return range(self.first_k_dense_replace, self.num_hidden_layers)


class Attention(nn.Module):
    """Multi-head latent attention with low-rank queries and interleaved rotary pairs."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        heads, width = shape.num_attention_heads, shape.hidden_size
        nope, rope, value = shape.qk_nope_head_dim, shape.qk_rope_head_dim, shape.v_head_dim
        self.q_a_proj = _linear(width, shape.q_lora_rank)
        self.q_a_layernorm = Norm(shape.q_lora_rank, LATENT_NORM_EPS)
        self.q_b_proj = _linear(shape.q_lora_rank, heads * (nope + rope))
        self.kv_a_proj_with_mqa = _linear(width, shape.kv_lora_rank + rope)
        self.kv_a_layernorm = Norm(shape.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = _linear(shape.kv_lora_rank, heads * (nope + value))
        self.o_proj = _linear(heads * value, width)

    def forward(self, x_NSD: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
        """Attend causally; [N, S, D] in and out."""
        n, s, _ = x_NSD.shape
        shape, heads = self.shape, self.shape.num_attention_heads
        nope, rope = shape.qk_nope_head_dim, shape.qk_rope_head_dim
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_NSD))).view(n, s, heads, nope + rope)
        q_nope, q_rope = q.transpose(1, 2).split([nope, rope], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x_NSD).split([shape.kv_lora_rank, rope], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(n, s, heads, nope + shape.v_head_dim)
        k_nope, value = kv.transpose(1, 2).split([nope, shape.v_head_dim], dim=-1)
        k_rope = rotate_pairs(k_rope.unsqueeze(1), cos_SR, sin_SR).expand(n, heads, s, rope)
        query = torch.cat([q_nope, rotate_pairs(q_rope, cos_SR, sin_SR)], dim=-1)
        key = torch.cat([k_nope, k_rope], dim=-1)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        written_NSD: Tensor = self.o_proj(out.transpose(1, 2).reshape(n, s, -1))
        return written_NSD


class Mlp(nn.Module):
    """Gated feed-forward block: the dense layers and the shared expert."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = _linear(width, hidden)
        self.up_proj = _linear(width, hidden)
        self.down_proj = _linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to the last dimension."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Router(nn.Module):
    """Sigmoid scores; a bias that only selects; the best groups by the sum of their two best scores."""

    e_score_correction_bias: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.randn(shape.n_routed_experts, shape.hidden_size) * 0.02)
        self.register_buffer("e_score_correction_bias", torch.zeros(shape.n_routed_experts))

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen experts and their combine weights, both [T, K]."""
        shape = self.shape
        scores_TE = F.linear(x_TD, self.weight).sigmoid()
        with torch.no_grad():
            choice_TE = scores_TE + self.e_score_correction_bias
            grouped = choice_TE.view(len(x_TD), shape.n_group, -1)
            best_TG = grouped.topk(2, dim=-1)[0].sum(-1).topk(shape.topk_group, dim=-1)[1]
            kept_TG = torch.zeros(len(x_TD), shape.n_group, dtype=torch.bool).scatter_(1, best_TG, True)
            masked = grouped.masked_fill(~kept_TG.unsqueeze(-1), float("-inf")).flatten(1)
            experts_TK = masked.topk(shape.num_experts_per_tok, dim=-1)[1]
        chosen_TK = scores_TE.gather(1, experts_TK)
        weights_TK = chosen_TK / (chosen_TK.sum(-1, keepdim=True) + 1e-20)
        return experts_TK, weights_TK * shape.routed_scaling_factor


class Moe(Routed):
    """Routed experts plus one shared expert."""

    def __init__(self, shape: Shape) -> None:
        width, hidden = shape.hidden_size, shape.moe_intermediate_size
        super().__init__(Router(shape), shape.n_routed_experts, width, hidden)
        self.shared_experts = Mlp(width, hidden * shape.n_shared_experts)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Add the routed experts' weighted sum and the shared expert; [T, D] in and out."""
        experts_TK, weights_TK = self.gate(x_TD)
        routed_TD = self.weighted_sum(x_TD, experts_TK, weights_TK)
        shared_TD: Tensor = self.shared_experts(x_TD)
        return routed_TD + shared_TD


class Model(Decoder):
    """The whole decoder; the first layers are dense."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__(shape, seed, _linear, shape.qk_rope_head_dim)
        _scale_residual_writers(self)

    def layer(self, index: int) -> Layer:
        """Return a new layer with latent attention, and a dense or a routed block."""
        shape: Shape = self.shape
        routed = index in shape.routed_layers
        attention = Attention(shape)
        mlp = Moe(shape) if routed else Mlp(shape.hidden_size, shape.intermediate_size)
        return Layer(shape.hidden_size, shape.rms_norm_eps, attention, mlp)


def rotate_pairs(x: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Rotate interleaved pairs. The output order is free as long as queries and keys share it."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos_SR - odd * sin_SR, odd * cos_SR + even * sin_SR], dim=-1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer


def _scale_residual_writers(model: Model) -> None:
    """Shrink what writes to the residual stream, so that depth does not blow it up at the start."""
    scale = (2 * len(model.layers)) ** -0.5
    with torch.no_grad():
        model.embed_tokens.weight.mul_(0.5)
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.mul_(scale)
