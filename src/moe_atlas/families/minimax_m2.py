"""MiniMax-M2: full-width q/k norms, partial rotation, ungrouped sigmoid router without shared experts."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    gated_mlp,
    grouped_query,
    moe,
    rms,
    sigmoid_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.names import MIXTRAL_EXPERTS, STANDARD


def build(c: Config) -> Blueprint:
    """Read a `minimax_m2` configuration."""
    c.expect("scoring_func", "sigmoid")
    c.expect("use_routing_bias", True)
    c.expect("use_qk_norm", True)
    c.expect("qk_norm_type", "per_layer")
    c.expect("shared_intermediate_size", 0)
    c.expect("attn_type_list", [1] * c.integer("num_hidden_layers"))
    c.inert("router_jitter_noise", why="used in training alone")
    norm, head_dim = rms(c), c.integer("head_dim", default=128)
    turning = c.optional("rotary_dim")
    rotary = rope(c, head_dim, theta=5e6, partial=turning / head_dim if turning else 1.0)
    c.implied("rotary_dim", rotary.dim, "partial_rotary_factor")
    attention = grouped_query(c, rope=rotary, head_dim=head_dim, qk_norm="full", qk_norm_spec=norm)
    router = sigmoid_router(
        c, renormalise=True, scale=1.0, epsilon=0.0, matmul="native", selection_bias_dtype="native"
    )
    routed = moe(c, router, gated_mlp(c, c.integer("intermediate_size")))
    return Blueprint(decoder(c, norm, lambda i: attention, lambda i: routed), STANDARD | MIXTRAL_EXPERTS)
