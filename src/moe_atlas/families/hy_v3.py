"""Hunyuan 3: per-head q/k norms and an ungrouped sigmoid router with a scale of its own."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_by_type
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    moe,
    rms,
    sigmoid_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.names import MLP, STANDARD

NAMES = {
    **STANDARD,
    "router": "mlp.router.gate",
    "selection_bias": "mlp.expert_bias",
    **{f"shared.{m}": f"mlp.shared_mlp.{m}" for m in MLP},
}


def build(c: Config) -> Blueprint:
    """Read a `hy_v3` configuration."""
    c.inert("enable_moe_fp32_combine", why="the sum of two bfloat16 numbers is the same, rounded once")
    norm, bias, width = (
        rms(c, default=1e-5),
        c.flag("attention_bias", default=False),
        c.integer("moe_intermediate_size"),
    )
    mlp_bias, dense, head_dim = c.flag("mlp_bias", default=False), dense_by_type(c), default_head_dim(c, 128)
    attention = grouped_query(
        c,
        rope=rope(c, head_dim, theta=11158840.0),
        head_dim=head_dim,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="head",
        qk_norm_spec=norm,
    )
    router = sigmoid_router(c, renormalise=True, scale=c.number("router_scaling_factor"))
    shared = gated_mlp(c, width * c.integer("num_shared_experts"), bias=mlp_bias)
    routed = moe(c, router, gated_mlp(c, width), shared=shared)
    plain = gated_mlp(c, c.integer("intermediate_size"), bias=mlp_bias)
    return Blueprint(decoder(c, norm, lambda i: attention, lambda i: plain if dense(i) else routed), NAMES)
