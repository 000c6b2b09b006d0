"""A compact DeepSeek-V3-shaped decoder, written for fast float32 training on two CPU cores.

It computes what `DeepseekV3ForCausalLM` computes: multi-head latent attention with interleaved
rotary pairs, a sigmoid router with a selection bias and group-limited top-k, one shared expert,
dense first layers. Experts are kept fused and run as one padded batched product, because a loop
over experts spends more time in dispatch than in arithmetic at this size.

Shapes: N sequences, S positions, T tokens (N*S), D width, H expert width, E experts, K experts a
token, G groups, A attention heads, V vocabulary, C slots an expert (the largest load of the batch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    max_position_embeddings: int = 512

    @property
    def routed_layers(self) -> range:
        """Indices of the layers that have a router."""
        return range(self.first_k_dense_replace, self.num_hidden_layers)


class Norm(nn.Module):
    """Root-mean-square norm with a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


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


class Moe(nn.Module):
    """Routed experts plus one shared expert. `load_E` holds the counts of the last forward pass."""

    load_E: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        experts, width, hidden = shape.n_routed_experts, shape.hidden_size, shape.moe_intermediate_size
        self.gate = Router(shape)
        self.gate_up_proj = nn.Parameter(torch.randn(experts, width, 2 * hidden) * width**-0.5)
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)
        self.shared_experts = Mlp(width, hidden * shape.n_shared_experts)
        self.load_E = torch.zeros(experts)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Add the routed experts' weighted sum and the shared expert; [T, D] in and out."""
        experts_TK, weights_TK = self.gate(x_TD)
        tokens_EC, slots_TK, self.load_E = plan_slots(experts_TK, len(self.gate_up_proj))
        x_ECD = Dispatch.apply(x_TD, tokens_EC, slots_TK)
        gate_ECH, up_ECH = torch.bmm(x_ECD, self.gate_up_proj).chunk(2, dim=-1)
        out_ECD = torch.bmm(F.silu(gate_ECH) * up_ECH, self.down_proj)
        routed_TD: Tensor = Combine.apply(out_ECD, weights_TK, tokens_EC, slots_TK)
        shared_TD: Tensor = self.shared_experts(x_TD)
        return routed_TD + shared_TD


def plan_slots(experts_TK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give each (token, choice) a slot of its expert.

    Returns:
        tokens_EC: the token in each slot; empty slots name token T, one past the last.
        slots_TK: the flat slot of each choice, the inverse of the above.
        load_E: float32 number of tokens of each expert.
    """
    tokens, k = experts_TK.shape
    flat = experts_TK.flatten()
    order = flat.argsort(stable=True)
    load_E = torch.bincount(flat, minlength=experts)
    capacity = int(load_E.max())
    starts_E = load_E.cumsum(0) - load_E
    sorted_experts = flat[order]
    slot = sorted_experts * capacity + torch.arange(tokens * k) - starts_E[sorted_experts]
    tokens_EC = torch.full((experts * capacity,), tokens)
    tokens_EC[slot] = order // k
    slots_TK = torch.empty_like(flat)
    slots_TK[order] = slot
    return tokens_EC.view(experts, capacity), slots_TK.view(tokens, k), load_E.float()


class Dispatch(torch.autograd.Function):
    """Copy tokens into slots. Forward and backward are gathers: scatter-adds are slow on a CPU."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, tokens_EC: Tensor, slots_TK: Tensor) -> Tensor:
        """Return the tokens by slot [E, C, D], zeros where a slot is empty."""
        ctx.save_for_backward(slots_TK)
        padded = torch.cat([x_TD, x_TD.new_zeros(1, x_TD.shape[1])])
        return padded.index_select(0, tokens_EC.flatten()).view(*tokens_EC.shape, -1)

    @staticmethod
    def backward(ctx: Any, grad_ECD: Tensor) -> tuple[Tensor, None, None]:
        """Sum over the K gradients that came back for each token."""
        (slots_TK,) = ctx.saved_tensors
        gathered = grad_ECD.reshape(-1, grad_ECD.shape[-1]).index_select(0, slots_TK.flatten())
        return gathered.view(*slots_TK.shape, -1).sum(1), None, None


class Combine(torch.autograd.Function):
    """Weighted sum of each token's expert outputs, again with gathers in both directions."""

    @staticmethod
    def forward(ctx: Any, out_ECD: Tensor, weights_TK: Tensor, tokens_EC: Tensor, slots_TK: Tensor) -> Tensor:
        """Return the weighted sums [T, D]."""
        gathered = out_ECD.reshape(-1, out_ECD.shape[-1]).index_select(0, slots_TK.flatten())
        gathered = gathered.view(*slots_TK.shape, -1)
        ctx.save_for_backward(gathered, weights_TK, tokens_EC, slots_TK)
        return torch.bmm(weights_TK.unsqueeze(1), gathered).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Send each token's gradient to its K slots."""
        gathered, weights_TK, tokens_EC, slots_TK = ctx.saved_tensors
        grad_weights = torch.bmm(gathered, grad_TD.unsqueeze(-1)).squeeze(-1)
        slot_weight = weights_TK.new_zeros(tokens_EC.numel())
        slot_weight[slots_TK.flatten()] = weights_TK.flatten()
        padded = torch.cat([grad_TD, grad_TD.new_zeros(1, grad_TD.shape[1])])
        grad_out = padded.index_select(0, tokens_EC.flatten()).mul_(slot_weight.unsqueeze(-1))
        return grad_out.view(*tokens_EC.shape, -1), grad_weights, None, None


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, shape: Shape, index: int) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        routed = index in shape.routed_layers
        self.mlp = Moe(shape) if routed else Mlp(shape.hidden_size, shape.intermediate_size)

    def forward(self, x_NSD: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
        """Add attention, then the feed-forward block; [N, S, D] in and out."""
        x_NSD = x_NSD + self.self_attn(self.input_layernorm(x_NSD), cos_SR, sin_SR)
        normed_TD = self.post_attention_layernorm(x_NSD).flatten(0, 1)
        routed_NSD: Tensor = self.mlp(normed_TD).view_as(x_NSD)
        return x_NSD + routed_NSD


class Model(nn.Module):
    """The whole decoder with untied embedding and head."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
            self.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.num_hidden_layers))
            self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
            self.lm_head = _linear(shape.hidden_size, shape.vocab_size)
            _scale_residual_writers(self)

    def forward(self, tokens_NS: Tensor) -> Tensor:
        """Return next-token logits [N, S, V]."""
        x_NSD = self.embed_tokens(tokens_NS)
        cos_SR, sin_SR = rotary_tables(tokens_NS.shape[1], self.shape.qk_rope_head_dim, self.shape.rope_theta)
        for layer in self.layers:
            x_NSD = layer(x_NSD, cos_SR, sin_SR)
        logits_NSV: Tensor = self.lm_head(self.norm(x_NSD))
        return logits_NSV

    def routed(self) -> list[Moe]:
        """The MoE blocks, in layer order."""
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, Moe)]


def rotary_tables(positions: int, rope: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, rope/2] of the rotary angles of `rope` dimensions, with the base `theta`."""
    frequency = theta ** (-torch.arange(0, rope, 2).float() / rope)
    angle = torch.arange(positions).float().outer(frequency)
    return angle.cos(), angle.sin()


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
