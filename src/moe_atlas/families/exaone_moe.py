"""K-EXAONE: rotation only in sliding layers, per-head q/k norms, the sigmoid router of DeepSeek-V3."""

from __future__ import annotations

from typing import Any

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_by_type, layer_kinds
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    grouped_sigmoid_router,
    moe,
    rms,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.names import STANDARD

NAMES = STANDARD | {"selection_bias": "mlp.e_score_correction_bias"}


def build(c: Config) -> Blueprint:
    """Read an `exaone_moe` configuration."""
    norm, width, window = (
        rms(c, default=1e-5),
        c.integer("moe_intermediate_size"),
        c.optional("sliding_window", default=4096),
    )
    if window and c.optional("layer_types") is None:
        raise c.refuse("layer_types", "the key is missing, and the family has no safe default for it")
    c.inert(
        "sliding_window_pattern",
        why="what layer_types are made of where they are missing, and they are needed",
    )
    kinds = layer_kinds(c, lambda i: "full_attention")
    dense = dense_by_type(c)
    first = sum(dense(i) for i in range(len(kinds)))
    c.implied(
        "first_last_k_dense_replace", first, "mlp_layer_types"
    )  # as released; it speaks of the first alone
    rotary = rope(c, default_head_dim(c), theta=10000.0)
    options: dict[str, Any] = {"qk_norm": "head", "qk_norm_spec": norm}
    sliding = grouped_query(c, rope=rotary, window=window, **options)
    full = grouped_query(c, rope=None if window else rotary, **options)
    shared = gated_mlp(c, width * c.integer("num_shared_experts"))
    routed = moe(c, grouped_sigmoid_router(c), gated_mlp(c, width), shared=shared)
    plain = gated_mlp(c, c.integer("intermediate_size"))
    model = decoder(
        c,
        norm,
        lambda i: sliding if kinds[i] == "sliding_attention" else full,
        lambda i: plain if dense(i) else routed,
    )
    return Blueprint(model, NAMES)
