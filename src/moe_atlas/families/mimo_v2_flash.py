"""MiMo-V2-Flash: narrow scaled values, sinks and twice the key heads in sliding layers, no shared expert."""

from __future__ import annotations

from moe_atlas.families.config import Config
from moe_atlas.families.kinds import dense_by_type, layer_kinds
from moe_atlas.families.mixers import GroupedQuery
from moe_atlas.families.names import STANDARD
from moe_atlas.families.parts import (
    Blueprint,
    decoder,
    gated_mlp,
    grouped_query,
    grouped_sigmoid_router,
    moe,
    rms,
)
from moe_atlas.families.rope import rope

NAMES = STANDARD | {"sinks": "self_attn.attention_sink_bias"}


def build(c: Config) -> Blueprint:
    """Read a `mimo_v2_flash` configuration as transformers writes it."""
    kinds = layer_kinds(c, lambda i: "sliding_attention" if i and (i + 1) % 6 else "full_attention")
    head_dim, bias = c.integer("head_dim"), c.flag("attention_bias", default=False)
    ropes = {kind: rope(c, head_dim, layer_type=kind) for kind in sorted(set(kinds))}
    window, scale = c.integer("sliding_window"), c.number("attention_value_scale", default=0.707, null=1.0)
    heads, v_dim = c.integer("num_key_value_heads"), c.integer("v_head_dim")

    def attention(i: int) -> GroupedQuery:
        slides = kinds[i] == "sliding_attention"
        return grouped_query(
            c,
            rope=ropes[kinds[i]],
            head_dim=head_dim,
            v_dim=v_dim,
            kv_heads=2 * heads if slides else heads,
            window=window if slides else None,
            qkv_bias=bias,
            sinks=slides,
            softmax="native",
            value_scale=scale,
        )

    router = grouped_sigmoid_router(c, scale=c.number("routed_scaling_factor", default=1.0))
    routed = moe(c, router, gated_mlp(c, c.integer("moe_intermediate_size")))
    plain, dense = gated_mlp(c, c.integer("intermediate_size")), dense_by_type(c)
    model = decoder(c, rms(c, default=1e-5), attention, lambda i: plain if dense(i) else routed)
    return Blueprint(model, NAMES)
