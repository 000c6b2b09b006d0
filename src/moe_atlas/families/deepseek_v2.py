"""DeepSeek-V2: latent attention, softmax router that may keep only the groups with the best single expert."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_first
from moe_atlas.configuration.parts import Blueprint, decoder, gated_mlp, latent, moe, rms, softmax_router
from moe_atlas.configuration.rope import rope
from moe_atlas.models.names import STANDARD


def build(c: Config) -> Blueprint:
    """Read a `deepseek_v2` configuration."""
    if not c.flag("use_mla", default=True, null=True):
        raise c.refuse(
            "use_mla = False",
            "missing: attention from k_proj and v_proj in place of latent attention; transformers' own class has none, "
            "so nothing says how it rotates",
        )
    c.expect("scoring_func", "softmax")
    c.expect(
        "norm_topk_prob", False
    )  # the original code renormalises instead of scaling, transformers does not
    c.expect("topk_method", "greedy", "group_limited_greedy")
    grouped = c.text("topk_method", default="greedy") == "group_limited_greedy"
    groups = c.integer("n_group", default=1, null=1), c.integer("topk_group", default=1, null=1)
    router = softmax_router(
        c,
        renormalise=False,
        groups=groups[0] if grouped else 1,
        kept_groups=groups[1] if grouped else 1,
        group_score="max" if grouped else "none",
        scale=c.number("routed_scaling_factor"),
        matmul="float32",
        weight_dtype="float32",
    )
    rotary = rope(c, c.integer("qk_rope_head_dim"), pairing="pairs", arithmetic="float32", theta=10000.0)
    attention = latent(
        c, rotary, bias=c.flag("attention_bias", default=False), default_rank=1536, own_keys=True
    )
    dense, width, bias = dense_first(c), c.integer("moe_intermediate_size"), c.flag("mlp_bias", default=False)
    shared = gated_mlp(c, width * c.integer("n_shared_experts"), bias=bias)
    routed = moe(c, router, gated_mlp(c, width), shared=shared)
    plain = gated_mlp(c, c.integer("intermediate_size"), bias=bias)
    model = decoder(c, rms(c), lambda i: attention, lambda i: plain if dense(i) else routed)
    return Blueprint(model, STANDARD)
