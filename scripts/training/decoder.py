"""What every decoder for training shares: fused routed experts, a pre-norm layer, embedding and head.

Experts are kept fused and run as one padded batched product, because a loop over experts spends more time in
dispatch than in arithmetic at this size.

Shapes: N sequences, S positions, T tokens (N*S), D width, H expert width, E experts, K experts a token, V vocabulary,
C slots an expert (the largest load of the batch), R rotary dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    """Root-mean-square norm with a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Routed(nn.Module):
    """Routed experts behind a gate. `load_E` holds the counts of the last forward pass."""

    load_E: Tensor

    def __init__(self, gate: nn.Module, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = gate
        self.gate_up_proj = nn.Parameter(torch.randn(experts, width, 2 * hidden) * width**-0.5)
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)
        self.load_E = torch.zeros(experts)

    def weighted_sum(self, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return the weighted sum of each token's experts [T, D], and count the load of every expert."""
        tokens_EC, slots_TK, self.load_E = plan_slots(experts_TK, len(self.gate_up_proj))
        x_ECD = Dispatch.apply(x_TD, tokens_EC, slots_TK)
        gate_ECH, up_ECH = torch.bmm(x_ECD, self.gate_up_proj).chunk(2, dim=-1)
        out_ECD = torch.bmm(F.silu(gate_ECH) * up_ECH, self.down_proj)
        routed_TD: Tensor = Combine.apply(out_ECD, weights_TK, tokens_EC, slots_TK)
        return routed_TD


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

    def __init__(self, width: int, eps: float, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = Norm(width, eps)
        self.self_attn = attention
        self.post_attention_layernorm = Norm(width, eps)
        self.mlp = mlp

    def forward(self, x_NSD: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
        """Add attention, then the feed-forward block; [N, S, D] in and out."""
        x_NSD = x_NSD + self.self_attn(self.input_layernorm(x_NSD), cos_SR, sin_SR)
        normed_TD = self.post_attention_layernorm(x_NSD).flatten(0, 1)
        written_NSD: Tensor = self.mlp(normed_TD).view_as(x_NSD)
        return x_NSD + written_NSD


class Decoder(nn.Module):
    """The whole decoder with untied embedding and head.

    Args:
        shape: the sizes, named as in the released configuration file.
        seed: of the initial weights.
        head: makes the head from width and vocabulary.
        rotary: dimensions of a head that are rotated.
    """

    def __init__(self, shape: Any, seed: int, head: Callable[[int, int], nn.Linear], rotary: int) -> None:
        super().__init__()
        self.shape, self.rotary = shape, rotary
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
            self.layers = nn.ModuleList(self.layer(index) for index in range(shape.num_hidden_layers))
            self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
            self.lm_head = head(shape.hidden_size, shape.vocab_size)

    def layer(self, index: int) -> Layer:
        """Return a new layer of the family."""
        raise NotImplementedError

    def forward(self, tokens_NS: Tensor) -> Tensor:
        """Return next-token logits [N, S, V]."""
        x_NSD = self.embed_tokens(tokens_NS)
        cos_SR, sin_SR = rotary_tables(tokens_NS.shape[1], self.rotary, self.shape.rope_theta)
        for layer in self.layers:
            x_NSD = layer(x_NSD, cos_SR, sin_SR)
        logits_NSV: Tensor = self.lm_head(self.norm(x_NSD))
        return logits_NSV

    def routed(self) -> list[Routed]:
        """The MoE blocks, in layer order."""
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, Routed)]


def rotary_tables(positions: int, rope: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, rope/2] of the rotary angles of `rope` dimensions, with the base `theta`."""
    frequency = theta ** (-torch.arange(0, rope, 2).float() / rope)
    angle = torch.arange(positions).float().outer(frequency)
    return angle.cos(), angle.sin()
