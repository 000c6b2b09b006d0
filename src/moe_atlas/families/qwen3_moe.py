"""Qwen3-MoE: grouped-query attention with a norm per q and k head, softmax router, no shared expert."""

from __future__ import annotations

from dataclasses import replace

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_by_step, sliding_window
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
from moe_atlas.configuration.rope import rope, settings
from moe_atlas.models.names import STANDARD


def build_vision(c: Config) -> Blueprint:
    """Read the text part of a `qwen3_vl_moe` configuration: experts fused and transposed on disk."""
    # The class of the text part says tied, that of the whole model says not; the latter writes what holds.
    c.flag("tie_word_embeddings")
    c.expect("norm_topk_prob", True)
    c.expect("use_sliding_window", False)
    c.expect("sliding_window", None)
    return replace(compose(c, None, renormalise=True, theta=500000.0), fused="fused_transposed")


def build_omni(c: Config) -> Blueprint:
    """Read the thinker of a `qwen3_omni_moe` configuration: the language model beside which a talker speaks."""
    c.expect("use_sliding_window", False)
    c.expect("sliding_window", None)  # the class does not slide, whatever the key says
    c.expect("shared_expert_intermediate_size", 0)  # of the talker alone
    for section in settings(c):
        section.inert(
            "interleaved", why="how the position axes share the planes, and all three agree on text"
        )
    return compose(c, None, renormalise=c.flag("norm_topk_prob"), theta=1e6)


def build(c: Config) -> Blueprint:
    """Read a `qwen3_moe` configuration."""
    return compose(
        c, sliding_window(c, 4096, switch=True), renormalise=c.flag("norm_topk_prob"), theta=10000.0
    )


def compose(c: Config, window: int | None, *, renormalise: bool, theta: float) -> Blueprint:
    """Attention with normalised heads, and a router over experts only."""
    norm, head_dim, dense = rms(c), default_head_dim(c), dense_by_step(c)
    rotary, bias = rope(c, head_dim, theta=theta), c.flag("attention_bias", default=False)
    routed = moe(
        c,
        softmax_router(c, renormalise=renormalise),
        gated_mlp(c, c.integer("moe_intermediate_size")),
    )
    plain = gated_mlp(c, c.integer("intermediate_size"))
    model = decoder(
        c,
        norm,
        lambda i: grouped_query(
            c, rope=rotary, head_dim=head_dim, window=window, qkv_bias=bias, out_bias=bias,
            qk_norm="head", qk_norm_spec=norm,
        ),
        lambda i: plain if dense(i) else routed,
    )  # fmt: skip
    return Blueprint(model, STANDARD)
