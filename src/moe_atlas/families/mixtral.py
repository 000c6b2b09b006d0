"""Mixtral: grouped-query attention, softmax router whose weights are always renormalised."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import sliding_window
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
from moe_atlas.models.names import MIXTRAL_EXPERTS, STANDARD


def build(c: Config) -> Blueprint:
    """Read a `mixtral` configuration."""
    c.inert("router_jitter_noise", why="noise on the router's input in training alone")
    rotary = rope(c, default_head_dim(c), theta=1e6)
    attention = grouped_query(c, rope=rotary, window=sliding_window(c, switch=False))
    router = softmax_router(c, renormalise=True, weight_dtype="float32")
    routed = moe(c, router, gated_mlp(c, c.integer("intermediate_size")))
    return Blueprint(
        decoder(c, rms(c, default=1e-5), lambda i: attention, lambda i: routed), STANDARD | MIXTRAL_EXPERTS
    )
