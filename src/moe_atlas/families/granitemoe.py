"""Granite MoE in four kinds: scaled embeddings, branches and logits, experts fused; windows with sinks, or Mamba-2."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import layer_kinds
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    moe,
    rms,
    softmax_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.mixers import GroupedQuery, Mamba2, Mixer, Rope
from moe_atlas.models.names import STANDARD

NAMES = {
    **STANDARD,
    "router": "block_sparse_moe.router.layer",
    **{f"expert.{m}": f"block_sparse_moe.experts.{{e}}.{m}" for m in ("gate_proj", "up_proj", "down_proj")},
    "experts.gate_up_proj": "block_sparse_moe.input_linear",
    "experts.down_proj": "block_sparse_moe.output_linear",
    "shared.gate_proj": "shared_mlp.gate_proj",
    "shared.up_proj": "shared_mlp.up_proj",
    "shared.down_proj": "shared_mlp.output_linear",
    **{role: f"mamba.{role}" for role in ("in_proj", "conv1d", "A_log", "dt_bias", "D")},
    "output_norm": "mamba.norm",
    "mixer_out_proj": "mamba.out_proj",
}
NAMES_SLIDING = NAMES | {
    "router": "block_sparse_moe.router",
    "experts.gate_up_proj": "block_sparse_moe.experts.gate_up_proj",
    "experts.down_proj": "block_sparse_moe.experts.down_proj",
}
STACKS = {"shared_mlp.input_linear": ("shared.gate_proj", "shared.up_proj")}


def build(c: Config) -> Blueprint:
    """Read a `granitemoe` or `granitemoeshared` configuration."""
    attention = _attention(c, rope(c, default_head_dim(c), theta=10000.0))
    return compose(c, lambda i: attention)


def build_sliding(c: Config) -> Blueprint:
    """Read a `granitemoe_swa` configuration: sinks, windows on three of four layers, a base of its own for each."""
    kinds = layer_kinds(c, lambda i: "sliding_attention" if i % 4 else "full_attention")
    rotary, window = rope(c, default_head_dim(c), theta=10000.0), c.optional("sliding_window", default=128)
    bases = c.optional("layer_rope_theta") or [rotary.theta] * len(kinds)

    def layer(index: int) -> GroupedQuery:
        turning = replace(rotary, theta=float(bases[index])) if bases[index] else None
        seen = window if kinds[index] == "sliding_attention" else None
        return _attention(c, turning, sinks=True, window=seen)

    return compose(c, layer, NAMES_SLIDING)


def build_hybrid(c: Config) -> Blueprint:
    """Read a `granitemoehybrid` configuration: Mamba-2 layers with attention here and there."""
    kinds = layer_kinds(c, lambda i: "linear_attention", "linear_attention")
    c.inert("mamba_chunk_size", why="how kernels cut the same recurrence")
    c.expect("position_embedding_type", "rope", "nope")
    rotary = rope(c, default_head_dim(c), theta=10000.0)
    attention = _attention(c, rotary if c.optional("position_embedding_type") == "rope" else None)
    most: Any
    least, most = c.optional("time_step_limit") or (0.0, None)
    if type(most) in (int, float) and math.isfinite(most):
        raise c.uncomputed(
            f"time_step_limit = {[least, most]}", "an upper limit of the step size is not implemented"
        )
    mamba = Mamba2(
        heads=c.integer("mamba_n_heads"),
        head_dim=c.integer("mamba_d_head"),
        state_dim=c.integer("mamba_d_state"),
        groups=c.integer("mamba_n_groups"),
        kernel=c.integer("mamba_d_conv"),
        norm=rms(c),
        least_step=float(least),
        conv_bias=c.flag("mamba_conv_bias"),
        bias=c.flag("mamba_proj_bias"),
    )
    if c.integer("mamba_expand", default=2) * c.integer("hidden_size") != mamba.heads * mamba.head_dim:
        raise c.refuse(
            "mamba_expand", "expected mamba_n_heads · mamba_d_head / hidden_size (2 where it is missing)"
        )
    return compose(c, lambda i: mamba if kinds[i] == "linear_attention" else attention, shared=1024)


def _attention(c: Config, rotary: Rope | None, **options: Any) -> GroupedQuery:
    bias, scale = c.flag("attention_bias", default=False), c.number("attention_multiplier", default=1.0)
    return grouped_query(c, rope=rotary, scale=scale, own_keys=True, qkv_bias=bias, out_bias=bias, **options)


def compose(
    c: Config, mixer: Callable[[int], Mixer], names: dict[str, str] = NAMES, *, shared: int = 0
) -> Blueprint:
    """Any mixers, and a block whose weights are a softmax over the chosen; every branch is scaled.

    `shared` is the width of the shared perceptron where the config leaves it out.
    """
    shared = c.integer("shared_intermediate_size", default=shared)
    routed = moe(
        c,
        softmax_router(c, renormalise=False, combine="softmax_of_chosen"),
        gated_mlp(c, c.integer("intermediate_size")),
        shared=gated_mlp(c, shared) if shared else None,
    )
    model = decoder(
        c,
        rms(c),
        mixer,
        lambda i: routed,
        residual_scale=c.number("residual_multiplier", default=1.0),
        model={
            "embed_scale": c.number("embedding_multiplier", default=1.0),
            "logit_divisor": c.number("logits_scaling", default=1.0),
        },
    )
    return Blueprint(model, names, stacks=STACKS if shared else {})
