"""Ling and Ring 2.0 (Bailing MoE v2): q, k and v in one matrix, q/k norms, grouped sigmoid router.

The reference implementation is remote code that transformers does not contain; read off it, not run. Its configuration
class cannot be asked either, so nothing that moves a number may be missing.
"""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_first
from moe_atlas.configuration.parts import Blueprint, decoder, gated_mlp, grouped_query, moe, sigmoid_router
from moe_atlas.configuration.rope import rope
from moe_atlas.families.deepseek import build_ling
from moe_atlas.models.mixers import Norm
from moe_atlas.models.names import STANDARD

NAMES = STANDARD | {
    "embedding": "model.word_embeddings",
    "o_proj": "attention.dense",
    "q_norm": "attention.query_layernorm",
    "k_norm": "attention.key_layernorm",
    "selection_bias": "mlp.gate.expert_bias",
}
PRESENT = {
    "score_function": "sigmoid",
    "moe_router_topk_scaling_factor": None,
    "norm_topk_prob": True,
    "use_qk_norm": True,
    "use_sliding_window": False,
    "use_rmsnorm": True,
    "norm_head": False,
    "router_type": "topN",
}
UNUSED = "router_dtype sliding_window multi_gate norm_softmax moe_shared_expert_intermediate_size"


def build(c: Config) -> Blueprint:
    """Read a `bailing_moe` configuration: version 2 has a selection bias, and version 1.5 shares its name with it."""
    if not c.flag("moe_router_enable_expert_bias", default=False, null=False):
        c.expect("score_function", "softmax")
        return build_ling(c)
    c.text("score_function")
    for key, value in PRESENT.items():
        c.expect(key, value)
    c.inert(*UNUSED.split(), why="read by the remote code in training alone, or not at all")
    norm, groups = Norm("rms", c.number("rms_norm_eps")), c.integer("n_group")
    attention = grouped_query(
        c,
        rope=rope(c, c.integer("head_dim"), partial=c.number("partial_rotary_factor")),
        qkv_bias=c.flag("use_qkv_bias"),
        out_bias=c.flag("use_bias"),
        qk_norm="head",
        qk_norm_spec=norm,
    )
    router = sigmoid_router(
        c,
        renormalise=c.integer("num_experts_per_tok") > 1,
        scale=c.number("routed_scaling_factor"),
        groups=groups,
        kept_groups=c.integer("topk_group"),
        group_score="top2_sum" if groups > 1 else "none",
    )
    width, shared = c.integer("moe_intermediate_size"), c.integer("num_shared_experts")
    routed = moe(c, router, gated_mlp(c, width), shared=gated_mlp(c, width * shared) if shared else None)
    plain, dense = gated_mlp(c, c.integer("intermediate_size")), dense_first(c)
    model = decoder(
        c,
        norm,
        lambda i: attention,
        lambda i: plain if dense(i) else routed,
        tied=c.flag("tie_word_embeddings"),
    )
    return Blueprint(model, NAMES, stacks={"attention.query_key_value": ("q_proj", "k_proj", "v_proj")})
