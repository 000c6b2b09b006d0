"""gpt-oss: attention sinks, alternating windows, biased router, clamped experts with interleaved rows."""

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
    softmax_router,
)
from moe_atlas.configuration.rope import rope, settings
from moe_atlas.models.names import STANDARD
from moe_atlas.models.spec import FeedForward

NAMES = STANDARD | {"router": "mlp.router"}


def build(c: Config) -> Blueprint:
    """Read a `gpt_oss` configuration."""
    c.expect("hidden_act", "silu")
    kinds = layer_kinds(c, lambda i: "full_attention" if i % 2 else "sliding_attention")
    window, bias = c.optional("sliding_window", default=128), c.flag("attention_bias", default=True)
    if not settings(c):  # the class would take yarn, and another loader no scaling at all
        raise c.refuse("rope_parameters", "the key is missing, and the family has no safe default for it")
    head_dim = default_head_dim(c, 64)
    rotary = rope(c, head_dim, theta=150000.0)
    if rotary.kind == "yarn":
        original = int(rotary.params["original"])
        c.implied("initial_context_length", original, "original_max_position_embeddings")
    experts = FeedForward(
        c.integer("intermediate_size"),
        "clamped_swiglu",
        bias=True,
        limit=c.number("swiglu_limit", default=7.0),
        alpha=c.number("swiglu_alpha", default=1.702),
        separate_bias=True,
    )
    router = softmax_router(
        c,
        renormalise=False,
        top_k=c.integer("num_experts_per_tok", "experts_per_token"),
        linear_bias=True,
        combine="softmax_of_chosen",
        probabilities="native",
    )
    routed = moe(c, router, experts)
    model = decoder(
        c,
        rms(c, "rms32", default=1e-5),
        lambda i: grouped_query(
            c,
            rope=rotary,
            head_dim=head_dim,
            window=window if kinds[i] == "sliding_attention" else None,
            qkv_bias=bias,
            out_bias=bias,
            sinks=True,
            softmax="native",
        ),
        lambda i: routed,
    )
    return Blueprint(model, NAMES, interleaved_rows=True, fused="fused_transposed")
