"""Mellum: Qwen3-MoE with rotation and window by layer type."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_by_type, layer_kinds
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
from moe_atlas.models.names import STANDARD


def build(c: Config) -> Blueprint:
    """Read a `mellum` configuration."""
    norm, head_dim, bias = rms(c), default_head_dim(c, 128), c.flag("attention_bias", default=False)
    kinds, window = layer_kinds(c, lambda i: "full_attention"), c.optional("sliding_window", default=1024)
    ropes = {kind: rope(c, head_dim, layer_type=kind) for kind in sorted(set(kinds))}
    router = softmax_router(c, renormalise=c.flag("norm_topk_prob"))
    routed = moe(c, router, gated_mlp(c, c.integer("moe_intermediate_size")))
    plain, dense = gated_mlp(c, c.integer("intermediate_size")), dense_by_type(c, first_dense=0)
    model = decoder(
        c,
        norm,
        lambda i: grouped_query(
            c,
            rope=ropes[kinds[i]],
            head_dim=head_dim,
            window=window if kinds[i] == "sliding_attention" else None,
            qkv_bias=bias,
            out_bias=bias,
            qk_norm="head",
            qk_norm_spec=norm,
        ),
        lambda i: plain if dense(i) else routed,
    )
    return Blueprint(model, STANDARD)
