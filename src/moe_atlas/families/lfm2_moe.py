"""LFM2-MoE: short gated convolutions with grouped-query attention in between, sigmoid router without shared experts."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import layer_kinds
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    default_head_dim,
    grouped_query,
    moe,
    rms,
    sigmoid_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.mixers import ShortConv
from moe_atlas.models.names import STANDARD
from moe_atlas.models.spec import FeedForward

FEED_FORWARD = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
NAMES = {
    **STANDARD,
    "final_norm": "model.embedding_norm",
    "pre_mixer_norm": "operator_norm",
    "pre_ffn_norm": "ffn_norm",
    "q_norm": "self_attn.q_layernorm",
    "k_norm": "self_attn.k_layernorm",
    "o_proj": "self_attn.out_proj",
    "in_proj": "conv.in_proj",
    "conv1d": "conv.conv",
    "mixer_out_proj": "conv.out_proj",
    "router": "feed_forward.gate",
    "selection_bias": "feed_forward.expert_bias",
    **{f"dense.{m}": f"feed_forward.{w}" for m, w in FEED_FORWARD.items()},
    **{f"expert.{m}": f"feed_forward.experts.{{e}}.{w}" for m, w in FEED_FORWARD.items()},
    "experts.gate_up_proj": "feed_forward.experts.gate_up_proj",
    "experts.down_proj": "feed_forward.experts.down_proj",
}


def build(c: Config) -> Blueprint:
    """Read an `lfm2_moe` configuration."""
    c.inert(
        "block_dim", "conv_dim", "conv_dim_out", why="read by the class nowhere; tensors have their shapes"
    )
    c.implied("block_ff_dim", c.integer("intermediate_size"), "intermediate_size")
    norm, kinds = rms(c, default=1e-5), layer_kinds(c, lambda i: "conv", "conv")
    rotary = rope(c, default_head_dim(c), theta=1000000.0, elsewhere=[(c, "rope_theta"), (c, "theta")])
    attention = grouped_query(c, rope=rotary, qk_norm="head", qk_norm_spec=norm)
    conv = ShortConv(c.integer("conv_L_cache"), bias=c.flag("conv_bias", default=False))
    router = sigmoid_router(
        c,
        renormalise=c.flag("norm_topk_prob"),
        scale=c.number("routed_scaling_factor", default=1.0),
        selection_bias=c.flag("use_expert_bias"),
        selection_bias_dtype="native",
        epsilon=1e-6,
        matmul="native",
        probabilities="native",
        weight_dtype="native",
    )
    routed = moe(c, router, FeedForward(c.integer("moe_intermediate_size"), "silu"))
    plain, dense = FeedForward(c.integer("intermediate_size"), "silu"), c.integer("num_dense_layers")
    model = decoder(
        c,
        norm,
        lambda i: conv if kinds[i] == "conv" else attention,
        lambda i: plain if i < dense else routed,
        tied=c.flag("tie_word_embeddings", "tie_embedding", default=True),
    )
    return Blueprint(model, NAMES)
