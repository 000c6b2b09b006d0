"""Qwen3-Next and Qwen3.5-MoE: three layers of gated delta rule, then one of gated attention."""

from __future__ import annotations

from collections.abc import Callable

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_by_step, layer_kinds
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
from moe_atlas.models.mixers import DeltaNet
from moe_atlas.models.names import MLP, STANDARD
from moe_atlas.models.spec import FeedForward

DELTA = ("in_proj_qkvz", "in_proj_ba", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
NAMES = {
    **STANDARD,
    **{role: f"linear_attn.{role}" for role in (*DELTA, "conv1d", "A_log", "dt_bias")},
    "output_norm": "linear_attn.norm",
    "mixer_out_proj": "linear_attn.out_proj",
    **{f"shared.{m}": f"mlp.shared_expert.{m}" for m in MLP},
    "shared_gate": "mlp.shared_expert_gate",
}


def build(c: Config) -> Blueprint:
    """Read a `qwen3_next` configuration."""
    dense, plain = dense_by_step(c), gated_mlp(c, c.integer("intermediate_size"))
    return compose(c, c.flag("norm_topk_prob"), grouped=True, dense=lambda i: plain if dense(i) else None)


def build_typed(c: Config) -> Blueprint:
    """Read a `qwen3_5_moe_text` configuration: four projections, always renormalised, no dense layer."""
    c.inert("intermediate_size", why="there is no dense layer")
    c.expect("norm_topk_prob", True)
    c.expect("mlp_only_layers", [])
    c.expect("decoder_sparse_step", 1)
    return compose(c, True, grouped=False, dense=lambda i: None)


def compose(
    c: Config, renormalise: bool, *, grouped: bool, dense: Callable[[int], FeedForward | None]
) -> Blueprint:
    """Both mixers, and a router with a gated shared expert beside it."""
    c.inert("mamba_ssm_dtype", why="how kernels keep a state")
    c.expect("attn_output_gate", True)
    norm, head_dim = rms(c, "rms1p"), default_head_dim(c, 256)
    every = c.integer("full_attention_interval", default=4)
    kinds = layer_kinds(
        c, lambda i: "linear_attention" if (i + 1) % every else "full_attention", "linear_attention"
    )
    bias = c.flag("attention_bias", default=False)
    attention = grouped_query(
        c,
        rope=rope(c, head_dim, theta=10000.0, partial=0.25),
        head_dim=head_dim,
        qk_norm="head",
        qk_norm_spec=norm,
        output_gate="sigmoid_from_q",
        qkv_bias=bias,
        out_bias=bias,
    )
    delta = DeltaNet(
        key_heads=c.integer("linear_num_key_heads", default=16),
        value_heads=c.integer("linear_num_value_heads", default=32),
        key_dim=c.integer("linear_key_head_dim", default=128),
        value_dim=c.integer("linear_value_head_dim", default=128),
        kernel=c.integer("linear_conv_kernel_dim", default=4),
        norm=rms(c),
        grouped=grouped,
    )
    routed = moe(
        c,
        softmax_router(c, renormalise=renormalise),
        gated_mlp(c, c.integer("moe_intermediate_size")),
        shared=gated_mlp(c, c.integer("shared_expert_intermediate_size", default=512)),
        shared_gate=True,
    )
    model = decoder(
        c,
        norm,
        lambda i: delta if kinds[i] == "linear_attention" else attention,
        lambda i: dense(i) or routed,
    )
    return Blueprint(model, NAMES)
