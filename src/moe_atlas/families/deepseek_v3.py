"""DeepSeek-V3 and its relatives: latent attention, group-limited sigmoid router, shared experts."""

from __future__ import annotations

from typing import Literal

from moe_atlas.families.config import Config
from moe_atlas.families.names import STANDARD
from moe_atlas.families.parts import (
    Blueprint,
    decoder,
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
    dense, width = dense_first(c), c.integer("moe_intermediate_size")
    pairing: Literal["pairs", "halves"] = "pairs" if c.flag("rope_interleave", default=True) else "halves"
    rotary = rope(c, c.integer("qk_rope_head_dim"), pairing=pairing, theta=10000.0)
    attention = latent(c, rotary, bias=c.flag("attention_bias", default=False))
    routed = moe(
        c,
        grouped_sigmoid_router(c),
        gated_mlp(c, width),
        shared=gated_mlp(c, width * c.integer("n_shared_experts")),
    )
    plain = gated_mlp(c, c.integer("intermediate_size"))
    model = decoder(c, rms(c), lambda i: attention, lambda i: plain if dense(i) else routed)
    return Blueprint(model, STANDARD)
