"""DeepSeek-V3 and its relatives: latent attention, group-limited sigmoid router, shared experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from moe_atlas.families.config import Config
from moe_atlas.families.names import STANDARD
from moe_atlas.families.parts import (
    Blueprint,
    decoder,
    dense_by_type,
    dense_first,
    gated_mlp,
    grouped_sigmoid_router,
    latent,
    moe,
    rms,
)
from moe_atlas.families.rope import rope


def build(c: Config) -> Blueprint:
    """Read a `deepseek_v3` configuration (also R1, V3.1, Moonlight and Kimi-K2)."""
    return compose(c, dense_first(c))


def build_typed(c: Config) -> Blueprint:
    """Read a `glm4_moe_lite` configuration: the same blocks, dense layers listed by type."""
    return compose(c, dense_by_type(c))


def build_axk1(c: Config) -> Blueprint:
    """Read an `axk1` configuration: a further norm behind the mixture of experts."""
    c.expect("moe_layer_freq", 1)
    dense = dense_by_type(c)
    return compose(
        c, dense, NAMES_AXK1, at=lambda i: {} if dense(i) else {"post_ffn_norm": True}
    )  # fmt: skip


NAMES_AXK1 = STANDARD | {"post_ffn_norm": "post_mlp_layernorm"}


def compose(
    c: Config, dense: Callable[[int], bool], names: dict[str, str] = STANDARD, **fields: Any
) -> Blueprint:
    """Latent attention and grouped sigmoid routing, with the layers of `dense` dense."""
    width = c.integer("moe_intermediate_size")
    pairing: Literal["pairs", "halves"] = "pairs" if c.flag("rope_interleave", default=True) else "halves"
    rotary = rope(c, c.integer("qk_rope_head_dim"), pairing=pairing, theta=10000.0)
    attention = latent(c, rotary, bias=c.flag("attention_bias", default=False))
    shared = gated_mlp(c, width * c.integer("n_shared_experts"))
    routed = moe(c, grouped_sigmoid_router(c), gated_mlp(c, width), shared=shared)
    plain = gated_mlp(c, c.integer("intermediate_size"))
    model = decoder(c, rms(c), lambda i: attention, lambda i: plain if dense(i) else routed, **fields)
    return Blueprint(model, names)
