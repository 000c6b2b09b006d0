"""Llama 4 (text): chunked attention with rotation, every fourth layer full without; experts weighted on input."""

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
from moe_atlas.models.mixers import GroupedQuery, Norm
from moe_atlas.models.names import MLP, STANDARD

NAMES = {
    **STANDARD,
    "router": "feed_forward.router",
    **{f"dense.{m}": f"feed_forward.{m}" for m in MLP},
    **{f"shared.{m}": f"feed_forward.shared_expert.{m}" for m in MLP},
    **{f"expert.{m}": f"feed_forward.experts.{{e}}.{m}" for m in MLP},
    "experts.gate_up_proj": "feed_forward.experts.gate_up_proj",
    "experts.down_proj": "feed_forward.experts.down_proj",
}


def build(c: Config) -> Blueprint:
    """Read a `llama4_text` configuration."""
    c.inert("router_jitter_noise", why="used in training alone")
    c.inert("for_llm_compressor", why="read by the class nowhere")
    if c.integer("num_experts_per_tok") != 1:
        raise c.uncomputed(
            "num_experts_per_tok", "weights on the expert input are implemented for top-1 routing only"
        )
    layers, step = c.integer("num_hidden_layers"), c.integer("interleave_moe_layer_step", default=1)
    sparse = list(range(step - 1, layers, step))
    c.implied("moe_layers", sparse, "interleave_moe_layer_step")
    router = softmax_router(c, renormalise=False, score="sigmoid", combine="sigmoid_of_chosen")
    expert = gated_mlp(c, c.integer("intermediate_size"))
    routed = moe(c, router, expert, shared=expert, weight_on_input=True)
    plain = gated_mlp(c, c.integer("intermediate_size_mlp"))
    model = decoder(
        c, rms(c, default=1e-5), _attention(c), lambda i: routed if i in sparse else plain
    )  # fmt: skip
    return Blueprint(model, NAMES, fused="fused_transposed")


def _attention(c: Config):  # type: ignore[no-untyped-def]
    interval = c.integer("no_rope_layer_interval", default=4)
    turning = c.optional("no_rope_layers") or [
        int((i + 1) % interval != 0) for i in range(c.integer("num_hidden_layers"))
    ]
    every = c.optional("nope_layer_interval")
    if every is not None:
        stated = [int((i + 1) % every != 0) if every else 1 for i in range(len(turning))]
        if stated != [int(bool(turns)) for turns in turning]:
            c.implied("nope_layer_interval", turning, "no_rope_layers")
    kinds = ["chunked_attention" if turns else "full_attention" for turns in turning]
    c.implied("layer_types", kinds, "no_rope_layers")
    head_dim = default_head_dim(c, 128)
    rotary = rope(c, head_dim, pairing="pairs", arithmetic="float32", theta=500000.0)
    normed = c.flag("use_qk_norm", default=True)
    eps, bias = rms(c, default=1e-5).eps, c.flag("attention_bias", default=False)
    chunk = c.optional("attention_chunk_size", default=8192)
    tuned = c.flag("attn_temperature_tuning", default=True)
    factor = c.number("floor_scale", default=8192), c.number("attn_scale", default=0.1)

    def layer(index: int) -> GroupedQuery:
        rotates = bool(turning[index])
        return grouped_query(
            c,
            rope=rotary if rotates else None,
            head_dim=head_dim,
            chunk=chunk if kinds[index] == "chunked_attention" else None,
            qk_norm="l2_after_rope" if normed and rotates else None,
            qk_norm_spec=Norm("rms", eps) if normed and rotates else None,
            temperature=factor if tuned and not rotates else None,
            qkv_bias=bias,
            out_bias=bias,
        )

    return layer
