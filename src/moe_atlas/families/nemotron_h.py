"""Nemotron-H: one block a layer (Mamba-2, attention without positions, experts or a perceptron), none of them gated."""

from __future__ import annotations

from typing import Any

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.parts import (
    Blueprint,
    activation,
    decoder,
    default_head_dim,
    grouped_query,
    grouped_sigmoid_router,
    moe,
    rms,
)
from moe_atlas.models.mixers import Mamba2
from moe_atlas.models.names import MLP, STANDARD
from moe_atlas.models.spec import FeedForward

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
NAMES = {
    **STANDARD,
    "embedding": "backbone.embeddings",
    "final_norm": "backbone.norm_f",
    "pre_mixer_norm": "norm",
    "pre_ffn_norm": "norm",
    **{role: f"mixer.{role}" for role in (*ATTENTION, "in_proj", "conv1d", "A_log", "dt_bias", "D")},
    "output_norm": "mixer.norm",
    "mixer_out_proj": "mixer.out_proj",
    "router": "mixer.gate",
    "selection_bias": "mixer.gate.e_score_correction_bias",
    **{f"dense.{m}": f"mixer.{m}" for m in MLP},
    **{f"shared.{m}": f"mixer.shared_experts.{m}" for m in MLP},
    **{f"expert.{m}": f"mixer.experts.{{e}}.{m}" for m in MLP},
}
KINDS = {
    "M": "mamba",
    "*": "attention",
    "E": "moe",
    "-": "mlp",
    "linear_attention": "mamba",
    "full_attention": "attention",
}
UNUSED = (
    "mamba_ssm_cache_dtype mamba_dt_init_floor time_step_max time_step_floor time_step_limit "
    "chunk_size expand rescale_prenorm_residual moe_shared_expert_overlap "
    "mamba_proj_bias mamba_chunk_size"
)


def build(c: Config) -> Blueprint:
    """Read a `nemotron_h` configuration; the kind of each layer is a list, or a string of one letter each."""
    kinds = _kinds(c)
    c.inert(*UNUSED.split(), why="initialisation, kernels, or read by the class nowhere")
    c.inert(
        "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", why="nothing is rotated"
    )
    c.expect("residual_in_fp32", False)
    c.expect("sliding_window", None)
    c.expect("mamba_hidden_act", "silu")
    latent = c.optional("moe_latent_size")
    if latent is not None:
        raise c.refuse(
            f"moe_latent_size = {latent}",
            "missing: experts between two projections (fc1_latent_proj in front, fc2_latent_proj behind their sum), "
            "whose outputs reach the residual through the second alone",
        )
    c.expect("attention_bias", False)
    c.expect("n_shared_experts", 1)
    mixers = {"mamba": _mamba(c), "attention": grouped_query(c, rope=None, head_dim=default_head_dim(c, 128))}
    blocks = {"moe": _moe(c), "mlp": _perceptron(c, c.integer("intermediate_size", default=21504))}

    def norms(index: int) -> dict[str, Any]:
        return {"pre_mixer_norm": kinds[index] in mixers, "pre_ffn_norm": kinds[index] in blocks}

    model = decoder(
        c,
        rms(c, "rms32", default=1e-5),
        lambda i: mixers.get(kinds[i]),
        lambda i: blocks.get(kinds[i]),
        layers=len(kinds),
        at=norms,
    )
    return Blueprint(model, NAMES, layer_prefix="backbone.layers.{i}.")


def _kinds(c: Config) -> list[str]:
    """The kind of each layer, which a config may give as a list, as a string, or as both."""
    listed, pattern = c.optional("layers_block_type", "layer_types"), c.optional("hybrid_override_pattern")
    if listed is None and pattern is None:
        raise c.refuse("layers_block_type", "the key is missing, and the family has no safe default for it")
    kinds, again = ([KINDS.get(kind, kind) for kind in said or ()] for said in (listed, pattern))
    if listed is not None and pattern is not None and again != kinds:
        c.implied("hybrid_override_pattern", kinds, "layers_block_type")
    kinds = kinds or again
    c.implied("num_hidden_layers", len(kinds), "the list of their kinds")
    odd = sorted(set(kinds) - {"mamba", "attention", "moe", "mlp"})
    if odd:
        raise c.refuse(f"layers_block_type: {odd[0]!r}", "this kind of layer is not implemented")
    return kinds


def _perceptron(c: Config, width: int) -> FeedForward:
    bias = c.flag("mlp_bias", default=False)
    return FeedForward(width, activation(c, "mlp_hidden_act", "relu2"), gated=False, bias=bias)


def _moe(c: Config) -> Any:
    shared = _perceptron(c, c.integer("moe_shared_expert_intermediate_size"))
    expert = FeedForward(
        c.integer("moe_intermediate_size"), activation(c, "mlp_hidden_act", "relu2"), gated=False
    )
    return moe(c, grouped_sigmoid_router(c), expert, shared=shared, accumulate="float32")


def _mamba(c: Config) -> Mamba2:
    return Mamba2(
        heads=c.integer("mamba_num_heads"),
        head_dim=c.integer("mamba_head_dim"),
        state_dim=c.integer("ssm_state_size"),
        groups=c.integer("n_groups", "mamba_n_groups"),
        kernel=c.integer("conv_kernel", "mamba_d_conv"),
        norm=rms(c, default=1e-5),
        least_step=c.number("time_step_min", "mamba_dt_min", default=0.001),
        conv_bias=c.flag("use_conv_bias", "mamba_conv_bias", default=True),
        bias=c.flag("use_bias", default=False),
    )
