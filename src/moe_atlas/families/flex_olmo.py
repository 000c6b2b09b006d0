"""FlexOlmo: norms behind the branches instead of in front, so that the router reads the raw residual."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
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
from moe_atlas.models.names import STANDARD

NAMES = STANDARD | {
    "post_mixer_norm": "post_attention_layernorm",
    "post_ffn_norm": "post_feedforward_layernorm",
}


def build(c: Config) -> Blueprint:
    """Read a `flex_olmo` configuration."""
    norm, bias = rms(c, "rms32"), c.flag("attention_bias", default=False)
    attention = grouped_query(
        c,
        rope=rope(c, default_head_dim(c), arithmetic="float32", theta=500000.0),
        own_keys=True,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="full",
        qk_norm_spec=norm,
    )
    router = softmax_router(c, renormalise=c.flag("norm_topk_prob"))
    routed = moe(c, router, gated_mlp(c, c.integer("intermediate_size")))
    model = decoder(
        c,
        norm,
        lambda i: attention,
        lambda i: routed,
        pre_mixer_norm=False,
        post_mixer_norm=True,
        pre_ffn_norm=False,
        post_ffn_norm=True,
    )
    return Blueprint(model, NAMES)
