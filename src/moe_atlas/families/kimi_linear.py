"""Kimi-Linear: three layers of Kimi delta attention, then one of latent attention without positions."""

from __future__ import annotations

from moe_atlas.configuration.config import Config, agreed
from moe_atlas.configuration.kinds import dense_by_type, layer_kinds
from moe_atlas.configuration.parts import (
    LAYERS,
    Blueprint,
    decoder,
    gated_mlp,
    grouped_sigmoid_router,
    latent,
    moe,
    rms,
)
from moe_atlas.models.mixers import KimiDelta
from moe_atlas.models.names import MIXTRAL_EXPERTS, MLP, STANDARD

DELTA = ("q_conv1d", "k_conv1d", "v_conv1d", "f_a_proj", "f_b_proj", "g_a_proj", "g_b_proj", "b_proj")
NAMES = {
    **STANDARD,
    **MIXTRAL_EXPERTS,
    **{role: f"self_attn.{role}" for role in (*DELTA, "A_log", "dt_bias")},
    "output_norm": "self_attn.o_norm",
    "selection_bias": "block_sparse_moe.gate.e_score_correction_bias",
    **{f"shared.{m}": f"block_sparse_moe.shared_experts.{m}" for m in MLP},
}


def build(c: Config) -> Blueprint:
    """Read a `kimi_linear` configuration; the layers of each kind are counted from 1 in a section of releases."""
    section = c.section("linear_attn_config") or Config({}, c.where, c.file)
    c.expect("mla_use_nope", True)
    c.expect("moe_router_activation_func", "sigmoid")
    c.expect("use_grouped_topk", True)
    c.expect("moe_layer_freq", 1)
    c.inert("rope_theta", "rope_scaling", "rope_parameters", why="nothing is rotated")
    kinds = _kinds(c, section)
    attention = latent(c, None, bias=c.flag("attention_bias", default=False), default_rank=None)
    delta = KimiDelta(
        heads=_linear(c, section, "num_heads", "linear_num_heads"),
        dim=_linear(c, section, "head_dim", "linear_head_dim"),
        kernel=_linear(c, section, "short_conv_kernel_size", "linear_conv_kernel_dim"),
        norm=rms(c, "rms32", default=1e-5),
    )
    width, dense = c.integer("moe_intermediate_size"), dense_by_type(c)
    shared = gated_mlp(c, width * c.integer("n_shared_experts", "num_shared_experts"))
    routed, plain = (
        moe(c, grouped_sigmoid_router(c), gated_mlp(c, width), shared=shared),
        gated_mlp(c, c.integer("intermediate_size")),
    )
    model = decoder(
        c,
        rms(c, default=1e-5),
        lambda i: delta if kinds[i] == "linear_attention" else attention,
        lambda i: plain if dense(i) else routed,
    )
    # Transformers writes the dense layers under the name of the sparse ones.
    return Blueprint(model, NAMES, also={f"dense.{m}": f"block_sparse_moe.{m}" for m in MLP})


def _kinds(c: Config, section: Config) -> list[str]:
    """`layer_types`; releases list the layers of each kind in a section instead, and may do both."""
    layers = c.integer(*LAYERS)
    full, linear = (section.optional(key) for key in ("full_attn_layers", "kda_layers"))
    if full is None and linear is None and c.optional("layer_types") is None:
        raise c.refuse("layer_types", "the key is missing, and the family has no safe default for it")
    kinds = layer_kinds(
        c, lambda i: "full_attention" if i + 1 in (full or ()) else "linear_attention", "linear_attention"
    )
    section.implied(
        "full_attn_layers", [i + 1 for i in range(layers) if kinds[i] == "full_attention"], "layer_types"
    )
    section.implied(
        "kda_layers", [i + 1 for i in range(layers) if kinds[i] != "full_attention"], "full_attn_layers"
    )
    return kinds


def _linear(c: Config, section: Config, inner: str, outer: str) -> int:
    return int(agreed((section, inner), (c, outer), kind=int))
