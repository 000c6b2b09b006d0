"""Cohere 2 MoE: attention and experts side by side behind one norm, weights over the chosen logits alone."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_by_type, layer_kinds
from moe_atlas.configuration.parts import (
    Blueprint,
    RoutedBlock,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    moe,
    softmax_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.mixers import GroupedQuery, Norm
from moe_atlas.models.names import STANDARD
from moe_atlas.models.spec import FeedForward

NAMES = STANDARD | {"pre_ffn_norm": "input_layernorm"}


def build(c: Config) -> Blueprint:
    """Read a `cohere2_moe` configuration."""
    eps, layer_eps = c.optional("rms_norm_eps"), c.number("layer_norm_eps", default=1e-5)
    norm = Norm("layer", layer_eps) if eps is None else Norm("rms", eps)
    dense, window, bias = (
        dense_by_type(c, 0),
        c.optional("sliding_window", default=4096),
        c.flag("attention_bias", default=False),
    )
    if c.optional("layer_types") is None:
        raise c.refuse("layer_types", "the key is missing, and the family has no safe default for it")
    c.inert(
        "sliding_window_pattern",
        why="what layer_types are made of where they are missing, and they are needed",
    )
    kinds = layer_kinds(c, lambda i: "full_attention")
    head_dim = default_head_dim(c, 128)
    rotary = rope(c, head_dim, pairing="pairs", arithmetic="mixed", theta=10000.0)
    forced = c.integer("prefix_dense_sliding_window_pattern", default=1) == 1

    def attention(i: int) -> GroupedQuery:
        slides = kinds[i] == "sliding_attention" and window is not None
        turns = slides or (dense(i) and forced)
        return grouped_query(
            c,
            rope=rotary if turns else None,
            head_dim=head_dim,
            own_keys=True,
            window=window if slides else None,
            qkv_bias=bias,
            out_bias=bias,
        )

    routed, plain = _moe(c), _dense(c)
    model = decoder(
        c,
        norm,
        attention,
        lambda i: plain if dense(i) else routed,
        tied=c.flag("tie_word_embeddings", default=True),
        pre_mixer_norm=False,
        block="parallel",
        model={"logit_scale": c.number("logit_scale", default=0.0625)},
    )
    return Blueprint(model, NAMES)


def _dense(c: Config) -> FeedForward:
    width = c.integer("intermediate_size")
    return gated_mlp(c, c.integer("prefix_dense_intermediate_size", default=width, null=width))


def _moe(c: Config) -> RoutedBlock:
    width, shared = c.integer("intermediate_size"), c.integer("num_shared_experts", default=0)
    c.expect("expert_selection_fn", "softmax", "sigmoid")
    c.expect("shared_expert_combination_strategy", "sum", "average")
    soft = c.text("expert_selection_fn", default="softmax") == "softmax"
    average = c.text("shared_expert_combination_strategy", default="average") == "average"
    router = softmax_router(
        c,
        renormalise=c.flag("norm_topk_prob") and not soft,
        score="softmax" if soft else "sigmoid",
        combine="softmax_of_chosen" if soft else "sigmoid_of_chosen",
        probabilities="float32" if soft else "native",
    )
    return moe(
        c,
        router,
        gated_mlp(c, width),
        shared=gated_mlp(c, width * shared) if shared else None,
        output_scale=0.5 if shared and average else 1.0,
    )
