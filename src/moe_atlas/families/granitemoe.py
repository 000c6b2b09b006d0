"""Granite MoE, with and without shared experts: scaled embeddings, residuals and logits, fused experts."""

from __future__ import annotations

from moe_atlas.families.config import Config
from moe_atlas.families.names import STANDARD
from moe_atlas.families.parts import (
    Blueprint,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    moe,
    rms,
    softmax_router,
)
from moe_atlas.families.rope import rope

NAMES = {
    **STANDARD,
    "router": "block_sparse_moe.router.layer",
    **{f"expert.{m}": f"block_sparse_moe.experts.{{e}}.{m}" for m in ("gate_proj", "up_proj", "down_proj")},
    "experts.gate_up_proj": "block_sparse_moe.input_linear",
    "experts.down_proj": "block_sparse_moe.output_linear",
    "shared.gate_proj": "shared_mlp.gate_proj",
    "shared.up_proj": "shared_mlp.up_proj",
    "shared.down_proj": "shared_mlp.output_linear",
}
STACKS = {"shared_mlp.input_linear": ("shared.gate_proj", "shared.up_proj")}


def build(c: Config) -> Blueprint:
    """Read a `granitemoe` or `granitemoeshared` configuration."""
    bias = c.flag("attention_bias", default=False)
    attention = grouped_query(
        c,
        rope=rope(c, default_head_dim(c), theta=10000.0),
        scale=c.number("attention_multiplier", default=1.0),
        qkv_bias=bias,
        out_bias=bias,
    )
    shared = c.integer("shared_intermediate_size", default=0)
    routed = moe(
        c,
        softmax_router(c, renormalise=False, combine="softmax_of_chosen"),
        gated_mlp(c, c.integer("intermediate_size")),
        shared=gated_mlp(c, shared) if shared else None,
    )
    model = decoder(
        c,
        rms(c),
        lambda i: attention,
        lambda i: routed,
        residual_scale=c.number("residual_multiplier", default=1.0),
        model={
            "embed_scale": c.number("embedding_multiplier", default=1.0),
            "logit_divisor": c.number("logits_scaling", default=1.0),
        },
    )
    return Blueprint(model, NAMES, stacks=STACKS if shared else {})
