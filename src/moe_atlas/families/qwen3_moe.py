"""Qwen3-MoE: grouped-query attention with a norm per q and k head, softmax router, no shared expert."""

from __future__ import annotations

from dataclasses import replace

from moe_atlas.families.config import Config
from moe_atlas.families.names import STANDARD
from moe_atlas.families.parts import (
    Blueprint,
    decoder,
    default_head_dim,
    dense_by_step,
    gated_mlp,
    grouped_query,
    moe,
    rms,
    sliding_window,
    softmax_router,
)
from moe_atlas.families.rope import rope


def build_vision(c: Config) -> Blueprint:
    """Read the text part of a `qwen3_vl_moe` configuration: experts fused and transposed on disk."""
    return replace(build(c), fused="fused_transposed")


def build(c: Config) -> Blueprint:
    """Read a `qwen3_moe` configuration."""
    norm, head_dim, dense, window = rms(c), default_head_dim(c), dense_by_step(c), sliding_window(c)
    rotary, bias = rope(c, head_dim, theta=10000.0), c.flag("attention_bias", default=False)
    routed = moe(
        c,
        softmax_router(c, renormalise=c.flag("norm_topk_prob")),
        gated_mlp(c, c.integer("moe_intermediate_size")),
    )
    plain = gated_mlp(c, c.integer("intermediate_size"))
    model = decoder(
        c,
        norm,
        lambda i: grouped_query(
            c, rope=rotary, head_dim=head_dim, window=window(i), qkv_bias=bias, out_bias=bias,
            qk_norm="head", qk_norm_spec=norm,
        ),
        lambda i: plain if dense(i) else routed,
    )  # fmt: skip
    return Blueprint(model, STANDARD)
