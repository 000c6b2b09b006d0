"""Mistral 4: latent attention with queries that grow with the position, softmax router limited to groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from moe_atlas.configuration.config import Config, agreed
from moe_atlas.configuration.kinds import dense_first
from moe_atlas.configuration.parts import Blueprint, decoder, gated_mlp, latent, moe, rms, softmax_router
from moe_atlas.configuration.rope import original_length, rope, settings
from moe_atlas.models.names import STANDARD


def build(c: Config) -> Blueprint:
    """Read a `mistral4` configuration."""
    sections = settings(c)
    if not sections:
        raise c.refuse("rope_parameters", "the key is missing, and the family has no safe default for it")
    agreed(*((level, "max_position_embeddings") for level in (*sections, c)))
    pairing: Literal["pairs", "halves"] = "pairs" if c.flag("rope_interleave", default=True) else "halves"
    head_dim = c.integer("qk_nope_head_dim") + c.integer("qk_rope_head_dim")
    rotary = rope(c, head_dim, pairing=pairing, partial=c.integer("qk_rope_head_dim") / head_dim)
    attention = latent(c, rotary, bias=c.flag("attention_bias", default=False), default_rank=1024)
    beta = agreed(*((section, "llama_4_scaling_beta") for section in sections), kind=float)
    attention = replace(attention, temperature=(original_length(c, sections[0]), beta))
    groups = c.integer("n_group", default=1, null=1)
    router = softmax_router(
        c,
        renormalise=c.flag("norm_topk_prob"),
        dispatch="scores",
        groups=groups,
        kept_groups=c.integer("topk_group", default=1, null=1),
        group_score="top2_sum" if groups > 1 else "none",
        epsilon=1e-20,
        scale=c.number("routed_scaling_factor"),
        probabilities="native",
    )
    width = c.integer("moe_intermediate_size")
    shared = gated_mlp(c, width * c.integer("n_shared_experts"))
    routed, plain = (
        moe(c, router, gated_mlp(c, width), shared=shared),
        gated_mlp(c, c.integer("intermediate_size")),
    )
    dense = dense_first(c)
    model = decoder(c, rms(c), lambda i: attention, lambda i: plain if dense(i) else routed)
    return Blueprint(model, STANDARD)
