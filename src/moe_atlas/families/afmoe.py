"""Trinity (AFMoE): norms on both sides of both branches, gated attention, rotation only where attention slides."""

from __future__ import annotations

from typing import Any

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import layer_kinds
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    moe,
    rms,
    sigmoid_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.names import STANDARD

NAMES = STANDARD | {
    "post_mixer_norm": "post_attention_layernorm",
    "pre_ffn_norm": "pre_mlp_layernorm",
    "post_ffn_norm": "post_mlp_layernorm",
    "output_gate": "self_attn.gate_proj",
    "router": "mlp.router.gate",
    "selection_bias": "mlp.expert_bias",
}


def build(c: Config) -> Blueprint:
    """Read an `afmoe` configuration."""
    c.expect("score_func", "sigmoid")
    c.expect("route_norm", True)
    c.expect("n_group", 1)
    c.expect("topk_group", 1)
    c.expect("num_expert_groups", 1)
    c.expect("num_limited_groups", 1)
    c.inert("load_balance_coeff", why="used in training alone")
    norm, width, bias = (
        rms(c, "rms32", default=1e-5),
        c.integer("moe_intermediate_size"),
        c.flag("attention_bias", default=False),
    )
    every, window = (
        c.integer("global_attn_every_n_layers", default=4),
        c.optional("sliding_window", default=1024),
    )
    kinds = layer_kinds(c, lambda i: "sliding_attention" if (i + 1) % every else "full_attention")
    head_dim = default_head_dim(c, 128)
    rotary = rope(c, head_dim, theta=10000.0)
    options: dict[str, Any] = {
        "head_dim": head_dim,
        "own_keys": True,
        "qkv_bias": bias,
        "out_bias": bias,
        "qk_norm": "head",
        "qk_norm_spec": norm,
        "output_gate": "sigmoid",
    }
    sliding = grouped_query(c, rope=rotary, window=window, **options)
    full = grouped_query(c, rope=None, **options)
    scale = c.number("route_scale")
    router = sigmoid_router(c, renormalise=True, scale=scale, matmul="native", selection_bias_dtype="native")
    shared = c.integer("num_shared_experts")
    routed = moe(c, router, gated_mlp(c, width), shared=gated_mlp(c, width * shared) if shared else None)
    plain, dense = gated_mlp(c, c.integer("intermediate_size")), c.integer("num_dense_layers")
    model = decoder(
        c,
        norm,
        lambda i: sliding if kinds[i] == "sliding_attention" else full,
        lambda i: plain if i < dense else routed,
        post_mixer_norm=True,
        post_ffn_norm=True,
        model={"embed_scale": c.integer("hidden_size") ** 0.5 if c.flag("mup_enabled") else 1.0},
    )
    return Blueprint(model, NAMES)
