"""MiniMax-Text-01: lightning attention among softmax attention, and no residual beside the norms."""

from __future__ import annotations

from typing import Any

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import layer_kinds
from moe_atlas.configuration.parts import (
    HEADS,
    LAYERS,
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
from moe_atlas.configuration.rope import rope
from moe_atlas.models.mixers import Lightning, Norm
from moe_atlas.models.names import DECAYS, MIXTRAL_EXPERTS, STANDARD
from moe_atlas.models.spec import NormedResidual

NAMES = {
    **STANDARD,
    **MIXTRAL_EXPERTS,
    **{role: f"self_attn.{role}" for role in ("qkv_proj", "output_gate", *DECAYS)},
    "output_norm": "self_attn.norm",
    "mixer_out_proj": "self_attn.out_proj",
}


def build(c: Config) -> Blueprint:
    """Read a `minimax` configuration."""
    c.inert("router_jitter_noise", why="noise on the router's input in training alone")
    kinds = layer_kinds(c, lambda i: "linear_attention" if i % 2 else "full_attention", "linear_attention")
    head_dim = default_head_dim(c)
    attention = grouped_query(
        c, rope=rope(c, head_dim, theta=1e6), head_dim=head_dim, window=c.optional("sliding_window")
    )
    router = softmax_router(c, renormalise=True, weight_dtype="float32")
    routed = moe(c, router, gated_mlp(c, c.integer("intermediate_size")))
    ffn_kept, ffn_added = _factors(c, "mlp")

    def normed(index: int) -> dict[str, Any]:
        kept, added = _factors(c, "linear_attn" if kinds[index] == "linear_attention" else "full_attn")
        return {"normed": NormedResidual(kept, added, ffn_kept, ffn_added)}

    model = decoder(
        c,
        rms(c, default=1e-5),
        lambda i: _lightning(c, i, head_dim) if kinds[i] == "linear_attention" else attention,
        lambda i: routed,
        at=normed,
    )
    return Blueprint(model, NAMES)


def _factors(c: Config, block: str) -> tuple[float, float]:
    """Return the factors on the normalised state and on the output of a kind of block."""
    kept, added = (c.number(f"{block}_{factor}_factor", default=1.0) for factor in ("alpha", "beta"))
    return kept, added


def _lightning(c: Config, index: int, head_dim: int) -> Lightning:
    """Return lightning attention; later layers decay more slowly, the norm has its class's default epsilon."""
    return Lightning(
        heads=c.integer(*HEADS),
        head_dim=head_dim,
        block=c.integer("block_size", default=256),
        slope=1 - index / (c.integer(*LAYERS) - 1 + 1e-5) + 1e-5,
        activation=activation(c),
        norm=Norm("rms", 1e-6),
    )
