"""DeepSeek-V3 and its relatives: latent attention, group-limited sigmoid router, shared experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import dense_by_type, dense_first
from moe_atlas.configuration.parts import (
    Blueprint,
    decoder,
    gated_mlp,
    grouped_sigmoid_router,
    latent,
    moe,
    rms,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.mixers import Indexer
from moe_atlas.models.names import STANDARD


def build(c: Config) -> Blueprint:
    """Read a `deepseek_v3` configuration (also R1, V3.1, Moonlight and Kimi-K2)."""
    return compose(c, dense_first(c), default_groups=(8, 4))


def build_typed(c: Config) -> Blueprint:
    """Read a `glm4_moe_lite` configuration: the same blocks, dense layers listed by type."""
    return compose(c, dense_by_type(c), eps=1e-5, rank=768)


def build_axk1(c: Config) -> Blueprint:
    """Read an `axk1` configuration: a further norm behind the mixture of experts."""
    c.expect("moe_layer_freq", 1)
    dense = dense_by_type(c)
    at = lambda i: {} if dense(i) else {"post_ffn_norm": True}  # noqa: E731
    return compose(c, dense, NAMES_AXK1, default_groups=(8, 4), at=at)


NAMES_AXK1 = STANDARD | {"post_ffn_norm": "post_mlp_layernorm"}


def build_sparse(c: Config) -> Blueprint:
    """Read a `deepseek_v32` configuration: an indexer in front of every attention, its planes in halves."""
    c.expect("mlp_bias", False)
    c.expect("moe_layer_freq", 1)
    return compose(c, dense_by_type(c, 3), default_groups=(8, 4), indexer=lambda i: _indexer(c, "halves"))


def build_glm(c: Config) -> Blueprint:
    """Read a `glm_moe_dsa` configuration: some layers see the keys that an earlier layer's indexer chose."""
    c.expect("mlp_bias", False)
    c.expect("moe_layer_freq", 1)
    freq, offset = c.integer("index_topk_freq", default=1), c.integer("index_skip_topk_offset", default=2)
    kinds, pattern = c.optional("indexer_types"), c.optional("index_topk_pattern")
    layers = c.integer("num_hidden_layers")
    own = [max(i - offset + 1, 0) % freq == 0 for i in range(layers)]
    stated = [[str(kind)[0].lower() == "f" for kind in said] for said in (kinds, pattern) if said is not None]
    if any(other != stated[0] for other in stated):
        c.implied("index_topk_pattern", kinds, "indexer_types")
    own = stated[0] if stated else own
    if len(own) != layers:
        raise c.refuse("indexer_types", f"expected one for each of {layers} layers, found {len(own)}")
    limit = None if all(own) else c.integer("index_topk")
    dense = dense_by_type(c, 3)
    indexer = lambda i: _indexer(c, "pairs") if own[i] else None  # noqa: E731
    return compose(c, dense, eps=1e-5, rank=2048, indexer=indexer, longest=limit)


def _indexer(c: Config, pairing: Literal["pairs", "halves"]) -> Indexer:
    c.inert("layer_types", why="every layer is an indexed one")
    return Indexer(c.integer("index_n_heads"), c.integer("index_head_dim"), c.integer("index_topk"), pairing)


def compose(
    c: Config,
    dense: Callable[[int], bool],
    names: dict[str, str] = STANDARD,
    *,
    default_groups: tuple[int, int] = (1, 1),
    eps: float = 1e-6,
    rank: int = 1536,
    indexer: Callable[[int], Indexer | None] = lambda index: None,
    longest: int | None = None,
    **fields: Any,
) -> Blueprint:
    """Latent attention and grouped sigmoid routing, with the layers of `dense` dense.

    `default_groups`, `eps` and `rank` hold where the config leaves them out.
    """
    width = c.integer("moe_intermediate_size")
    pairing: Literal["pairs", "halves"] = "pairs" if c.flag("rope_interleave", default=True) else "halves"
    rotary = rope(c, c.integer("qk_rope_head_dim"), pairing=pairing, theta=10000.0)
    attention = latent(c, rotary, bias=c.flag("attention_bias", default=False), default_rank=rank)
    shared = gated_mlp(c, width * c.integer("n_shared_experts"))
    router = grouped_sigmoid_router(c, default_groups=default_groups)
    routed = moe(c, router, gated_mlp(c, width), shared=shared)
    plain = gated_mlp(c, c.integer("intermediate_size"))
    attention = replace(attention, longest=longest)
    model = decoder(
        c,
        rms(c, default=eps),
        lambda i: replace(attention, indexer=indexer(i)),
        lambda i: plain if dense(i) else routed,
        **fields,
    )
    return Blueprint(model, names)
