"""Aria: softmax over the chosen experts, whose matrices are fused and transposed, beside ungated shared ones."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
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
from moe_atlas.models.names import STANDARD
from moe_atlas.models.spec import FeedForward

NAMES = STANDARD | {
    "router": "mlp.router",
    "experts.gate_up_proj": "mlp.experts.fc1",
    "experts.down_proj": "mlp.experts.fc2",
}


def build(c: Config) -> Blueprint:
    """Read an `aria_text` configuration; routed experts are silu whatever the shared ones are."""
    bias = c.flag("attention_bias", default=False)
    head_dim = default_head_dim(c)
    attention = grouped_query(
        c,
        rope=rope(c, head_dim, theta=10000.0),
        head_dim=head_dim,
        own_keys=True,
        qkv_bias=bias,
        out_bias=bias,
    )
    router = softmax_router(
        c, renormalise=False, combine="softmax_of_chosen", probabilities="native", top_k=c.integer("moe_topk")
    )
    width, shared = c.integer("intermediate_size"), c.integer("moe_num_shared_experts", default=2)
    routed = moe(
        c,
        router,
        FeedForward(width, "silu"),
        shared=gated_mlp(c, width * shared, bias=c.flag("mlp_bias", default=False)),
    )
    model = decoder(c, rms(c), lambda i: attention, lambda i: routed)
    return Blueprint(model, NAMES, fused="fused_transposed")
