"""Qwen1.5/Qwen2-MoE: q/k/v biases, softmax router, one shared expert behind a sigmoid gate."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_by_step, layer_kinds
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    gated_mlp,
    grouped_query,
    moe,
    rms,
    softmax_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.names import MLP, STANDARD

NAMES = {
    **STANDARD,
    **{f"shared.{m}": f"mlp.shared_expert.{m}" for m in MLP},
    "shared_gate": "mlp.shared_expert_gate",
}


def build(c: Config) -> Blueprint:
    """Read a `qwen2_moe` configuration."""
    dense, window = dense_by_step(c), c.optional("sliding_window", default=4096)
    slides, last = c.flag("use_sliding_window", default=False), c.integer("max_window_layers", default=28)
    # Before layer_types existed, every other layer below `last` had the window.
    kinds = layer_kinds(
        c, lambda i: "sliding_attention" if slides and i % 2 == 0 and i < last else "full_attention"
    )
    if "sliding_attention" in kinds and not (slides and window):
        raise c.refuse(
            "layer_types", "some layers slide, and use_sliding_window or sliding_window says that none does"
        )
    head_dim = c.integer("hidden_size") // c.integer("num_attention_heads")
    c.implied("head_dim", head_dim, "hidden_size / num_attention_heads")
    rotary, bias = rope(c, head_dim, theta=10000.0), c.flag("qkv_bias", default=True)
    routed = moe(
        c,
        softmax_router(c, renormalise=c.flag("norm_topk_prob")),
        gated_mlp(c, c.integer("moe_intermediate_size")),
        shared=gated_mlp(c, c.integer("shared_expert_intermediate_size")),
        shared_gate=True,
    )
    plain = gated_mlp(c, c.integer("intermediate_size"))
    model = decoder(
        c,
        rms(c),
        lambda i: grouped_query(
            c,
            rope=rotary,
            head_dim=head_dim,
            qkv_bias=bias,
            window=window if kinds[i] == "sliding_attention" else None,
        ),
        lambda i: plain if dense(i) else routed,
    )
    return Blueprint(model, NAMES)
