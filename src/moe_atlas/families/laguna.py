"""Laguna: attention gated by a softplus, rotation by layer type, sigmoid router scaled after the sum."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_by_type, layer_kinds
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    default_head_dim,
    gated_mlp,
    moe,
    rms,
    sigmoid_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.mixers import GroupedQuery
from moe_atlas.models.names import MLP, STANDARD

NAMES = {
    **STANDARD,
    "output_gate": "self_attn.g_proj",
    "selection_bias": "mlp.experts.e_score_correction_bias",
    **{f"shared.{m}": f"mlp.shared_expert.{m}" for m in MLP},
}


def build(c: Config) -> Blueprint:
    """Read a `laguna` configuration."""
    c.expect("moe_apply_router_weight_on_input", False)
    c.expect("moe_router_logit_softcapping", 0, 0.0)
    norm, head_dim, bias = rms(c), default_head_dim(c, 128), c.flag("attention_bias", default=False)
    kinds, window = layer_kinds(c, lambda i: "full_attention"), c.optional("sliding_window", default=512)
    ropes = {kind: rope(c, head_dim, layer_type=kind) for kind in sorted(set(kinds))}
    heads = c.get("num_attention_heads_per_layer", default=[c.integer("num_attention_heads")] * len(kinds))
    per_head = c.get("gating", default=True) in (True, "per-head")

    def attention(i: int) -> GroupedQuery:
        return GroupedQuery(
            heads=heads[i],
            kv_heads=c.integer("num_key_value_heads"),
            head_dim=head_dim,
            v_dim=head_dim,
            scale=head_dim**-0.5,
            rope=ropes[kinds[i]],
            window=window if kinds[i] == "sliding_attention" else None,
            qkv_bias=bias,
            out_bias=bias,
            qk_norm="head",
            qk_norm_spec=norm,
            output_gate="softplus_head" if per_head else "softplus",
        )

    router = sigmoid_router(
        c,
        renormalise=True,
        scale=1.0,
        epsilon=0.0,
        matmul="native",
        weight_dtype="native",
        selection_bias_dtype="native",
    )
    routed = moe(
        c,
        router,
        gated_mlp(c, c.integer("moe_intermediate_size")),
        shared=gated_mlp(c, c.integer("shared_expert_intermediate_size")),
        routed_scale=c.number("moe_routed_scaling_factor"),
    )
    plain, dense = gated_mlp(c, c.integer("intermediate_size")), dense_by_type(c)
    return Blueprint(decoder(c, norm, attention, lambda i: plain if dense(i) else routed), NAMES)
