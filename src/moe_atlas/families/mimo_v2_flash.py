"""MiMo-V2-Flash: narrow scaled values, sinks and twice the key heads in sliding layers, no shared expert."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_by_type, layer_kinds
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    gated_mlp,
    grouped_query,
    grouped_sigmoid_router,
    moe,
    rms,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.mixers import GroupedQuery, Norm, Rope
from moe_atlas.models.names import STANDARD

NAMES = STANDARD | {"sinks": "self_attn.attention_sink_bias"}


TURNS = {"full_attention": ("rope_theta", 5e6), "sliding_attention": ("swa_rope_theta", 1e4)}
"""Where the hub's form keeps the base of each kind of layer, and the one that the class takes without asking."""


def build(c: Config) -> Blueprint:
    """Read a `mimo_v2_flash` configuration, as the hub has it or as transformers writes it."""
    kinds = layer_kinds(c, lambda i: "sliding_attention" if i and (i + 1) % 6 else "full_attention")
    head_dim, bias = c.integer("head_dim"), c.flag("attention_bias", default=False)
    ropes = {kind: _rope(c, kind, head_dim) for kind in TURNS if kind in kinds}
    window, scale = _window(c), c.number("attention_value_scale", default=0.707, null=1.0)
    heads, v_dim, norm = c.integer("num_key_value_heads"), c.integer("v_head_dim"), rms(c, default=1e-5)

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

    scaling = c.number("routed_scaling_factor", default=1.0, null=1.0)
    router = grouped_sigmoid_router(c, scale=scaling)
    routed = moe(c, router, gated_mlp(c, c.integer("moe_intermediate_size")))
    plain, dense = gated_mlp(c, c.integer("intermediate_size")), dense_by_type(c)
    _hub(c, kinds, [dense(i) for i in range(len(kinds))], norm)
    return Blueprint(decoder(c, norm, attention, lambda i: plain if dense(i) else routed), NAMES)


def _rope(c: Config, kind: str, head_dim: int) -> Rope:
    key, base = TURNS[kind]
    c.expect("rope_scaling", {})
    if c.optional("rope_parameters"):
        return rope(c, head_dim, layer_type=kind, elsewhere=[(c, key)])
    c.implied(key, base, "the class, which does not read this key,")
    c.implied("partial_rotary_factor", 0.334, "the class, which does not read this key,")
    return rope(c, head_dim, theta=base, partial=0.334, elsewhere=[(c, key)])


def _window(c: Config) -> int:
    """Keys seen by a query: the hub counts them without the query itself, the class with it."""
    before = c.optional("sliding_window_size")
    if before is None:
        return c.integer("sliding_window")
    size = c.integer("sliding_window_size")
    for key in ("sliding_window", "attention_chunk_size"):
        c.expect(key, size, size + 1)
    return size + 1


def _hub(c: Config, kinds: list[str], dense: list[bool], norm: Norm) -> None:
    """Hold the keys that only the hub's form has against what the class computes without them."""
    heads, key_heads = c.integer("num_attention_heads"), c.integer("num_key_value_heads")
    said = {
        "hybrid_layer_pattern": [int(kind == "sliding_attention") for kind in kinds],
        "moe_layer_freq": [int(not plain) for plain in dense],
        "layernorm_epsilon": norm.eps,
        "swa_num_attention_heads": heads,
        "swa_num_key_value_heads": 2 * key_heads,
        "swa_head_dim": c.integer("head_dim"),
        "swa_v_head_dim": c.integer("v_head_dim"),
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
    }
    for key, value in said.items():
        c.implied(key, value, "the class, which does not read this key,")
