"""DBRX: LayerNorm without bias, one clipped q/k/v matrix, experts stacked row by row in three matrices."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.parts import HEADS, WIDTH, Blueprint, decoder, grouped_query, moe, softmax_router
from moe_atlas.configuration.rope import rope
from moe_atlas.models.mixers import Norm
from moe_atlas.models.spec import FeedForward

ATTENTION, EXPERTS = "norm_attn_norm.attn", "ffn.experts.mlp"
NAMES = {
    "embedding": "transformer.wte",
    "final_norm": "transformer.norm_f",
    "head": "lm_head",
    "pre_mixer_norm": "norm_attn_norm.norm_1",
    "pre_ffn_norm": "norm_attn_norm.norm_2",
    **{role: f"{ATTENTION}.{role}" for role in ("q_proj", "k_proj", "v_proj")},
    "o_proj": f"{ATTENTION}.out_proj",
    "router": "ffn.router.layer",
    "expert.gate_proj": "ffn.experts.{e}.w1",
    "expert.up_proj": "ffn.experts.{e}.v1",
    "expert.down_proj": "ffn.experts.{e}.w2",
    "experts.gate_proj": f"{EXPERTS}.w1",
    "experts.up_proj": f"{EXPERTS}.v1",
    "experts.down_proj": f"{EXPERTS}.w2",
}


def build(c: Config) -> Blueprint:
    """Read a `dbrx` configuration."""
    attention, ffn = c.section("attn_config"), c.section("ffn_config")
    if attention is None or ffn is None:
        raise c.refuse("attn_config and ffn_config", "both are needed")
    c.inert("max_seq_len", why="how long a text may be")
    ffn.inert("moe_jitter_eps", "uniform_expert_assignment", why="used in training alone")
    ffn.implied("hidden_size", c.integer(*WIDTH), "d_model")
    ffn.expect("ffn_act_fn", {"name": "silu"})
    ffn.expect("moe_normalize_expert_weights", 1, 1.0)
    norm = Norm("layer", 1e-5)
    head_dim, kv_heads = c.integer(*WIDTH) // c.integer(*HEADS), attention.integer("kv_n_heads")
    c.implied("head_dim", head_dim, "d_model / n_heads")
    c.implied("num_key_value_heads", kv_heads, "attn_config.kv_n_heads")
    mixer = grouped_query(
        c,
        rope=rope(c, head_dim, theta=10000.0, elsewhere=[(c, "rope_theta"), (attention, "rope_theta")]),
        head_dim=head_dim,
        kv_heads=kv_heads,
        clip=attention.number("clip_qkv") if attention.optional("clip_qkv") else None,
    )
    router = softmax_router(
        c,
        renormalise=ffn.optional("moe_normalize_expert_weights", default=1.0) is not None,
        experts=ffn.integer("moe_num_experts"),
        top_k=ffn.integer("moe_top_k"),
        probabilities="native",
    )
    routed = moe(c, router, FeedForward(ffn.integer("ffn_hidden_size"), "silu"))
    stacks = {f"{ATTENTION}.Wqkv": ("q_proj", "k_proj", "v_proj")}
    return Blueprint(
        decoder(c, norm, lambda i: mixer, lambda i: routed),
        NAMES,
        layer_prefix="transformer.blocks.{i}.",
        fused="stacked",
        stacks=stacks,
    )
