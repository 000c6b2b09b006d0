"""GLM-4.5 to 4.7 and Solar-Open: grouped-query attention in front of the sigmoid router of DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Callable

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_first
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
from moe_atlas.models.spec import FeedForward


def build(c: Config) -> Blueprint:
    """Read a `glm4_moe` configuration."""
    normed = c.flag("use_qk_norm", default=False)
    plain = gated_mlp(c, c.integer("intermediate_size"))
    dense = dense_first(c)
    head_dim, bias = default_head_dim(c), c.flag("attention_bias", default=False)
    return _build(
        c,
        head_dim,
        lambda i: plain if dense(i) else None,
        partial=0.5,
        theta=10000.0,
        normed=normed,
        bias=bias,
    )


def build_vision(c: Config) -> Blueprint:
    """Read the text part of a `glm4v_moe` configuration: biases by default, and never a norm of q and k."""
    plain, dense = gated_mlp(c, c.integer("intermediate_size")), dense_first(c)
    bias = c.flag("attention_bias", default=True)
    return _build(
        c,
        default_head_dim(c),
        lambda i: plain if dense(i) else None,
        partial=0.5,
        theta=10000.0,
        normed=False,
        bias=bias,
    )


def build_solar(c: Config) -> Blueprint:
    """Read a `solar_open` configuration: every layer is sparse, the whole head rotates."""
    c.expect("first_k_dense_replace", 0)
    c.expect("use_qk_norm", False)
    c.inert("intermediate_size", why="there is no dense layer")
    head_dim, bias = default_head_dim(c, 128), c.flag("attention_bias", default=False)
    return _build(c, head_dim, lambda i: None, partial=1.0, theta=1e6, normed=False, bias=bias)


def _build(
    c: Config,
    head_dim: int,
    dense: Callable[[int], FeedForward | None],
    *,
    partial: float,
    theta: float,
    normed: bool,
    bias: bool,
) -> Blueprint:
    norm, width = rms(c, default=1e-5), c.integer("moe_intermediate_size")
    attention = grouped_query(
        c,
        rope=rope(c, head_dim, theta=theta, partial=partial),
        head_dim=head_dim,
        qkv_bias=bias,
        qk_norm="head" if normed else None,
        qk_norm_spec=norm if normed else None,
    )
    shared = gated_mlp(c, width * c.integer("n_shared_experts"))
    routed = moe(c, grouped_sigmoid_router(c), gated_mlp(c, width), shared=shared)
    return Blueprint(decoder(c, norm, lambda i: attention, lambda i: dense(i) or routed), STANDARD)
