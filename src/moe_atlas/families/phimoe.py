"""Phi-3.5-MoE: LayerNorm throughout, biases, and sparsemixer routing, whose two weights need not sum to 1."""

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
    softmax_router,
)
from moe_atlas.configuration.rope import rope, settings
from moe_atlas.models.mixers import Norm
from moe_atlas.models.names import MIXTRAL_EXPERTS, STANDARD


def build(c: Config) -> Blueprint:
    """Read a `phimoe` configuration."""
    c.inert(
        "input_jitter_noise", why="used in training alone"
    )  # router_jitter_noise is not: sparsemixer's band
    norm = Norm("layer", c.number("rms_norm_eps", default=1e-5), bias=True)
    bias = c.flag("attention_bias", default=False)
    rotary = rope(c, default_head_dim(c), theta=1e6)
    for section in settings(c) if rotary.kind == "longrope" else ():  # the class demands both
        section.number("short_mscale")
        section.number("long_mscale")
    attention = grouped_query(
        c,
        rope=rotary,
        window=sliding_window(c, switch=False),
        qkv_bias=bias,
        out_bias=bias,
    )
    router = softmax_router(
        c,
        renormalise=False,
        combine="sparsemixer",
        probabilities="native",
        jitter=c.number("router_jitter_noise"),
    )
    if router.top_k != 2:
        raise c.uncomputed(f"num_experts_per_tok = {router.top_k}", "sparsemixer is defined for two experts")
    routed = moe(c, router, gated_mlp(c, c.integer("intermediate_size")))
    model = decoder(
        c,
        norm,
        lambda i: attention,
        lambda i: routed,
        model={"head_bias": c.flag("lm_head_bias", default=False)},
    )
    return Blueprint(model, STANDARD | MIXTRAL_EXPERTS)
