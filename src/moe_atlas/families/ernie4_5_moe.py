"""ERNIE 4.5: softmax router whose probabilities, plus a selection bias, are what top-k is taken on.

Its vision-language model routes tokens of pictures to experts of their own, behind a router of their own. No token of
text reaches either: they are compared by their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_by_type
from moe_atlas.configuration.parts import (
    EXPERTS,
    Blueprint,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    moe,
    rms,
    softmax_router,
)
from moe_atlas.configuration.rope import rope, settings
from moe_atlas.models.names import STANDARD
from moe_atlas.models.spec import ModelSpec

BIAS = "mlp.moe_statics.e_score_correction_bias"
NAMES = STANDARD | {"selection_bias": BIAS}
NAMES_VISION = STANDARD | {"selection_bias": "mlp.text_moe.gate.moe_statics.e_score_correction_bias"}
"""The class's name of the text router's bias; biases of text and vision are stored together."""


def build(c: Config) -> Blueprint:
    """Read an `ernie4_5_moe` configuration."""
    c.expect("moe_gate", "topk")
    c.expect("moe_use_aux_free", True)
    c.inert("moe_capacity", why="limits the tokens of an expert in training")
    start, last = c.integer("moe_layer_start_index"), c.integer("moe_layer_end_index", default=-1)
    end = c.integer("num_hidden_layers") - 1 if last == -1 else last
    step = c.integer("moe_layer_interval", default=1)
    bias = c.flag("use_bias", default=False)
    model = _compose(
        c,
        c.integer("moe_intermediate_size"),
        lambda i: not ((i + 1) % step == 0 and start <= i <= end),
        bias,
        {"head_bias": bias},
    )
    return Blueprint(model, NAMES)


def build_vision(c: Config) -> Blueprint:
    """Read the text part of an `ernie4_5_vl_moe` configuration."""
    widths = c.integers("moe_intermediate_size", default=[1536, 512])
    if len(widths) != 2:
        raise c.refuse(
            f"moe_intermediate_size = {widths!r}", "expected the widths of text and vision experts"
        )
    _require_interleaved(c)
    model = _compose(c, widths[0], dense_by_type(c), c.flag("use_bias", default=False), {})
    experts = c.integer(*EXPERTS)
    vision = "|".join(str(expert) for expert in range(experts, 2 * experts))
    return Blueprint(
        model,
        NAMES_VISION,
        also={"selection_bias": BIAS},
        turned=frozenset({"router"}),
        entries={"selection_bias": 2},
        other_modality=rf"mlp\.(gate\.weight_1|experts\.({vision})\.\w+\.weight)",
    )


def _require_interleaved(c: Config) -> None:
    """Refuse planes of height and width that do not alternate: only then do equal positions turn as one axis does."""
    half = default_head_dim(c) // 2
    for section in settings(c):
        planes = section.integers("mrope_section", default=[22, 22, 20])
        if len(planes) != 3 or planes[0] != planes[1] or sum(planes) != half:
            raise c.uncomputed(f"mrope_section = {planes!r}", f"expected [n, n, {half} - 2n]")


def _compose(
    c: Config, width: int, dense: Callable[[int], bool], bias: bool, fields: Mapping[str, Any]
) -> ModelSpec:
    """Return the decoder of both; `fields` are fields of `ModelSpec`."""
    rotary = rope(c, default_head_dim(c), pairing="pairs", arithmetic="float32", theta=500000.0)
    attention = grouped_query(c, rope=rotary, qkv_bias=bias, out_bias=bias)
    router = softmax_router(
        c,
        renormalise=True,
        dispatch="scores",
        selection_bias=True,
        floor=c.number("moe_norm_min", default=1e-12),
        matmul="float32",
    )
    shared = c.integer("moe_num_shared_experts", default=2, null=0)
    routed = moe(
        c,
        router,
        gated_mlp(c, width),
        shared=gated_mlp(c, width * shared, bias=bias) if shared else None,
    )
    plain = gated_mlp(c, c.integer("intermediate_size"), bias=bias)
    return decoder(
        c,
        rms(c, default=1e-5),
        lambda i: attention,
        lambda i: plain if dense(i) else routed,
        tied=c.flag("tie_word_embeddings", default=True),
        model=fields,
    )
