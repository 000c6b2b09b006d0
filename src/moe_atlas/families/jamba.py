"""Jamba: Mamba-1 and attention without positions, experts in some of the layers, a perceptron in the others."""

from __future__ import annotations

from collections.abc import Callable

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.parts import (
    LAYERS,
    WIDTH,
    Blueprint,
    activation,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    moe,
    rms,
    softmax_router,
)
from moe_atlas.models.mixers import Mamba1
from moe_atlas.models.names import MLP, STANDARD

NAMES = {
    **STANDARD,
    "final_norm": "model.final_layernorm",
    "pre_ffn_norm": "pre_ff_layernorm",
    **{role: f"mamba.{role}" for role in ("in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "D")},
    **{f"{part}_norm": f"mamba.{part}_layernorm" for part in ("dt", "b", "c")},
    "mixer_out_proj": "mamba.out_proj",
    "router": "feed_forward.router",
    **{f"dense.{m}": f"feed_forward.{m}" for m in MLP},
    **{f"expert.{m}": f"feed_forward.experts.{{e}}.{m}" for m in MLP},
    "experts.gate_up_proj": "feed_forward.experts.gate_up_proj",
    "experts.down_proj": "feed_forward.experts.down_proj",
}


def build(c: Config) -> Blueprint:
    """Read a `jamba` configuration."""
    c.inert("use_mambapy", "use_associative_scan", why="which kernels compute the same recurrence")
    c.expect("sliding_window", None)
    attends = _every(c, "attn_layer", 8, 4)
    routes = _every(c, "expert_layer", 2, 1)
    plain = gated_mlp(c, c.integer("intermediate_size"))
    router = softmax_router(c, renormalise=False)
    routed = moe(c, router, plain)
    experts = [router.experts if routes(i) else 1 for i in range(c.integer(*LAYERS))]
    c.implied("layers_num_experts", experts, "expert_layer_period")
    attention, mamba = grouped_query(c, rope=None, head_dim=default_head_dim(c)), _mamba(c)
    model = decoder(
        c,
        rms(c),
        lambda i: attention if attends(i) else mamba,
        lambda i: routed if routes(i) else plain,
    )
    return Blueprint(model, NAMES)


def _every(c: Config, kind: str, default_period: int, default_offset: int) -> Callable[[int], bool]:
    """Return which layers are of a kind: one per period, at an offset."""
    period = c.integer(f"{kind}_period", default=default_period)
    offset = c.integer(f"{kind}_offset", default=default_offset)
    if not 0 <= offset < period:
        raise c.refuse(f"{kind}_offset = {offset}", f"expected less than {kind}_period = {period}")
    return lambda index: index % period == offset


def _mamba(c: Config) -> Mamba1:
    width = c.integer(*WIDTH)
    implied = -(-width // 16)
    rank = c.get("mamba_dt_rank", default=implied)
    return Mamba1(
        channels=c.integer("mamba_expand", default=2) * width,
        state_dim=c.integer("mamba_d_state", default=16),
        rank=implied if rank == "auto" else c.integer("mamba_dt_rank", default=implied),
        kernel=c.integer("mamba_d_conv", default=4),
        activation=activation(c),
        norm=rms(c),
        conv_bias=c.flag("mamba_conv_bias", default=True),
        bias=c.flag("mamba_proj_bias", default=False),
    )
