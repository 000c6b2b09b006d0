"""LongCat-Flash: two attentions and two perceptrons a layer, the experts beside them; some experts are the identity."""

from __future__ import annotations

from dataclasses import replace

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    gated_mlp,
    latent,
    layer,
    moe,
    rms,
    softmax_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.names import MLP, STANDARD
from moe_atlas.models.tensors import LATENT

NAMES = {
    **STANDARD,
    **{
        f"{half}{role}": name
        for half, j in (("", 0), ("after.", 1))
        for role, name in (
            ("pre_mixer_norm", f"input_layernorm.{j}"),
            ("pre_ffn_norm", f"post_attention_layernorm.{j}"),
            *((role, f"self_attn.{j}.{role}") for role in LATENT),
            *((f"dense.{m}", f"mlps.{j}.{m}") for m in MLP),
        )
    },
    "router": "mlp.router.classifier",
    "selection_bias": "mlp.router.e_score_correction_bias",
}


def build(c: Config) -> Blueprint:
    """Read a `longcat_flash` configuration."""
    c.expect("router_bias", False)  # the reference implementation never adds it
    c.expect("zero_expert_type", "identity")
    c.expect("norm_topk_prob", False)
    c.expect("mla_scale_q_lora", True)
    c.expect("mla_scale_kv_lora", True)
    c.expect("attention_method", "MLA")
    # The reference counts two attentions a layer there.
    c.expect("num_hidden_layers", c.integer("num_layers"), 2 * c.integer("num_layers"))
    width, norm = c.integer("hidden_size"), rms(c, default=1e-5)
    attention = latent(
        c,
        rope(c, c.integer("qk_rope_head_dim"), pairing="pairs", theta=10000000.0),
        bias=c.flag("attention_bias", default=False),
        default_rank=1536,
        own_keys=True,
        q_multiplier=(width / c.integer("q_lora_rank")) ** 0.5,
        kv_multiplier=(width / c.integer("kv_lora_rank")) ** 0.5,
    )
    if c.integer("head_dim", default=64) != c.integer(
        "qk_rope_head_dim"
    ):  # the class turns as many dimensions
        c.implied("qk_rope_head_dim", c.integer("head_dim", default=64), "head_dim (64 where it is missing)")
    identity = c.integer("zero_expert_num", default=256)
    router = softmax_router(
        c,
        renormalise=False,
        experts=c.integer("n_routed_experts") + identity,
        top_k=c.integer("moe_topk"),
        dispatch="scores",
        selection_bias=True,
        selection_bias_dtype="native",
        scale=c.number("routed_scaling_factor"),
        matmul="float32",
        weight_dtype="float32",
    )
    expert = gated_mlp(c, c.integer("expert_ffn_hidden_size"))
    routed, plain = (
        moe(c, router, expert, identity_experts=identity),
        gated_mlp(c, c.integer("ffn_hidden_size")),
    )
    model = decoder(c, norm, lambda i: attention, lambda i: routed, layers=c.integer("num_layers"))
    layers = tuple(
        replace(one, dense=plain, after=layer(one.index, norm, attention, plain)) for one in model.layers
    )
    return Blueprint(replace(model, layers=layers), NAMES)
