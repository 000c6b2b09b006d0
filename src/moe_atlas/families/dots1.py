"""dots.llm1: per-head q/k norms in front of the sigmoid router of DeepSeek-V3."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_first, layer_kinds
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    grouped_sigmoid_router,
    moe,
    rms,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.names import STANDARD


def build(c: Config) -> Blueprint:
    """Read a `dots1` configuration."""
    norm, width, dense = rms(c), c.integer("moe_intermediate_size"), dense_first(c)
    rotary, bias = rope(c, default_head_dim(c), theta=10000.0), c.flag("attention_bias", default=False)
    window, first = c.optional("sliding_window", default=4096), c.integer("max_window_layers", default=62)
    kinds = layer_kinds(c, lambda i: "sliding_attention" if window and i >= first else "full_attention")
    shared = gated_mlp(c, width * c.integer("n_shared_experts"))
    router = grouped_sigmoid_router(c, called=("sigmoid", "noaux_tc"))
    routed = moe(c, router, gated_mlp(c, width), shared=shared)
    plain = gated_mlp(c, c.integer("intermediate_size"))
    model = decoder(
        c,
        norm,
        lambda i: grouped_query(
            c,
            rope=rotary,
            window=window if kinds[i] == "sliding_attention" else None,
            qkv_bias=bias,
            out_bias=bias,
            qk_norm="head",
            qk_norm_spec=norm,
        ),
        lambda i: plain if dense(i) else routed,
    )
    return Blueprint(model, STANDARD)
