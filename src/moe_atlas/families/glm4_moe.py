"""GLM-4.5 to 4.7 and Solar-Open: grouped-query attention in front of the sigmoid router of DeepSeek-V3."""

from __future__ import annotations

from moe_atlas.families.config import Config
from moe_atlas.families.kinds import dense_first
from moe_atlas.families.names import STANDARD
from moe_atlas.families.parts import (
    Blueprint,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    grouped_sigmoid_router,
    moe,
    rms,
)
from moe_atlas.families.rope import rope


def build(c: Config) -> Blueprint:
    """Read a `glm4_moe` configuration."""
    normed = c.flag("use_qk_norm", default=False)
    plain = gated_mlp(c, c.integer("intermediate_size"))
    dense = dense_first(c)
    head_dim = default_head_dim(c)
    return _build(
        c, head_dim, lambda i: plain if dense(i) else None, partial=0.5, theta=10000.0, normed=normed
    )


def build_solar(c: Config) -> Blueprint:
    """Read a `solar_open` configuration: every layer is sparse, the whole head rotates."""
    c.expect("first_k_dense_replace", 0)
    c.expect("use_qk_norm", False)
    c.inert("intermediate_size")  # there is no dense layer
    return _build(c, default_head_dim(c, 128), lambda i: None, partial=1.0, theta=1e6, normed=False)


def _build(c: Config, head_dim: int, dense, *, partial: float, theta: float, normed: bool) -> Blueprint:  # type: ignore[no-untyped-def]
    norm, width = rms(c, default=1e-5), c.integer("moe_intermediate_size")
    attention = grouped_query(
        c,
        rope=rope(c, head_dim, theta=theta, partial=partial),
        head_dim=head_dim,
        qkv_bias=c.flag("attention_bias", default=False),
        qk_norm="head" if normed else None,
        qk_norm_spec=norm if normed else None,
    )
    shared = gated_mlp(c, width * c.integer("n_shared_experts"))
    routed = moe(c, grouped_sigmoid_router(c), gated_mlp(c, width), shared=shared)
    return Blueprint(decoder(c, norm, lambda i: attention, lambda i: dense(i) or routed), STANDARD)
