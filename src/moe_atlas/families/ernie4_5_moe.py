"""ERNIE 4.5: softmax router whose probabilities, plus a selection bias, are what top-k is taken on."""

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

NAMES = STANDARD | {"selection_bias": "mlp.moe_statics.e_score_correction_bias"}


def build(c: Config) -> Blueprint:
    """Read an `ernie4_5_moe` configuration."""
    c.expect("moe_gate", "topk")
    c.expect("moe_use_aux_free", True)
    c.inert("moe_capacity", why="limits the tokens of an expert in training")
    bias, width = c.flag("use_bias", default=False), c.integer("moe_intermediate_size")
    rotary = rope(c, default_head_dim(c), pairing="pairs", arithmetic="float32", theta=500000.0)
    attention = grouped_query(c, rope=rotary, qkv_bias=bias, out_bias=bias)
    router = softmax_router(
        c,
        renormalise=True,
        dispatch="scores",
        selection_bias=True,
        floor=c.number("moe_norm_min", default=1e-12),
        matmul="float32",
    )
    shared = c.integer("moe_num_shared_experts", default=2, null=0)
    routed = moe(
        c,
        router,
        gated_mlp(c, width),
        shared=gated_mlp(c, width * shared, bias=bias) if shared else None,
    )
    plain = gated_mlp(c, c.integer("intermediate_size"), bias=bias)
    start, last = c.integer("moe_layer_start_index"), c.integer("moe_layer_end_index", default=-1)
    end = c.integer("num_hidden_layers") - 1 if last == -1 else last
    step = c.integer("moe_layer_interval", default=1)
    model = decoder(
        c,
        rms(c, default=1e-5),
        lambda i: attention,
        lambda i: routed if (i + 1) % step == 0 and start <= i <= end else plain,
        tied=c.flag("tie_word_embeddings", default=True),
        model={"head_bias": bias},
    )
    return Blueprint(model, NAMES)
