"""OLMoE: q and k normalised over their full width, optional clipping, softmax router."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    gated_mlp,
    grouped_query,
    moe,
    rms,
    softmax_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.names import STANDARD


def build(c: Config) -> Blueprint:
    """Read an `olmoe` configuration."""
    norm, bias = rms(c, default=1e-5), c.flag("attention_bias", default=False)
    head_dim = c.integer("hidden_size") // c.integer("num_attention_heads")
    c.expect("sliding_window", None)
    c.implied("head_dim", head_dim, "hidden_size / num_attention_heads")
    attention = grouped_query(
        c,
        rope=rope(c, head_dim, theta=10000.0),
        head_dim=head_dim,
        own_keys=True,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="full",
        qk_norm_spec=norm,
        clip=c.number("clip_qkv") if c.optional("clip_qkv") else None,
    )
    router = softmax_router(c, renormalise=c.flag("norm_topk_prob"))
    routed = moe(c, router, gated_mlp(c, c.integer("intermediate_size")))
    return Blueprint(decoder(c, norm, lambda i: attention, lambda i: routed), STANDARD)
