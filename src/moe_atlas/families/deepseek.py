"""DeepSeekMoE, the first version, and Ling 1.5, which routes alike: softmax over all experts beside shared ones.

The reference implementations are remote code that transformers does not contain; read off it, not run. Their
configuration classes cannot be asked either, so nothing that moves a number may be missing.
"""

from __future__ import annotations

from typing import Literal

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_first
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    moe,
    softmax_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.mixers import Norm
from moe_atlas.models.names import STANDARD
from moe_atlas.models.spec import ModelSpec

LING = STANDARD | {"embedding": "model.word_embeddings", "o_proj": "attention.dense"}
UNUSED = "norm_softmax embedding_dropout output_dropout"


def build(c: Config) -> Blueprint:
    """Read a `deepseek` configuration; scores, combine weights and their sum are rounded to the activation dtype."""
    c.expect("scoring_func", "softmax")
    c.expect("topk_method", "greedy")
    c.expect("routed_scaling_factor", 1.0)
    bias = c.flag("attention_bias")
    return Blueprint(compose(c, bias, bias, "n_shared_experts", "native"), STANDARD)


def build_ling(c: Config) -> Blueprint:
    """Read a `bailing_moe` configuration of version 1.5; the scores stay in float32 up to the weighted sum."""
    c.expect("norm_head", False)  # of version 1.0: columns of the head brought to unit length
    c.expect("use_bias", False)
    c.expect("router_type", "topN")
    c.inert(*UNUSED.split(), why="used in training alone")
    model = compose(c, c.flag("use_qkv_bias"), False, "num_shared_experts", "float32")
    return Blueprint(model, LING, stacks={"attention.query_key_value": ("q_proj", "k_proj", "v_proj")})


def compose(
    c: Config, qkv_bias: bool, out_bias: bool, shared_key: str, precision: Literal["native", "float32"]
) -> ModelSpec:
    """Return the decoder of both; `precision` is that of scores, of combine weights and of the sum over experts."""
    attention = grouped_query(c, rope=rope(c, default_head_dim(c)), qkv_bias=qkv_bias, out_bias=out_bias)
    router = softmax_router(
        c,
        renormalise=c.flag("norm_topk_prob") and c.integer("num_experts_per_tok") > 1,
        probabilities=precision,
        weight_dtype=precision,
    )
    width, shared = c.integer("moe_intermediate_size"), c.integer(shared_key)
    routed = moe(
        c,
        router,
        gated_mlp(c, width),
        shared=gated_mlp(c, width * shared) if shared else None,
        accumulate=precision,
    )
    plain, dense = gated_mlp(c, c.integer("intermediate_size")), dense_first(c)
    norm = Norm("rms", c.number("rms_norm_eps"))
    return decoder(
        c,
        norm,
        lambda i: attention,
        lambda i: plain if dense(i) else routed,
        tied=c.flag("tie_word_embeddings"),
    )
