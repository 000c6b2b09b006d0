"""Position-embedding settings of both config generations.

Older configs hold `rope_theta` and `rope_scaling`, newer ones a single `rope_parameters`, which may be
nested by the type of the layer.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from moe_atlas.families.config import Config
from moe_atlas.families.mixers import Rope


def rope(
    c: Config,
    head_dim: int,
    *,
    pairing: Literal["halves", "pairs"] = "halves",
    arithmetic: Literal["native", "float32", "mixed"] = "native",
    theta: float | None = None,
    partial: float | None = None,
    layer_type: str | None = None,
) -> Rope:
    """The rotary embedding that a config describes.

    Args:
        c: the config section of the text model.
        head_dim: dimensions of a head that could rotate, before any partial factor.
        pairing: which two dimensions form a plane.
        arithmetic: the dtype rule, see `Rope`.
        theta: the family's own base where the config gives none.
        partial: rotated share of the head where the config gives none.
        layer_type: key of the nested form.
    """
    section = _section(c, layer_type)
    base = _number(section, c, "rope_theta", theta)
    share = _number(section, c, "partial_rotary_factor", 1.0 if partial is None else partial)
    kind, params = scaling(c, section, head_dim)
    return Rope(int(head_dim * share), base, pairing, arithmetic, kind, params)


def _section(c: Config, layer_type: str | None) -> Config:
    found = c.section("rope_parameters") or c.section("rope_scaling") or Config({}, c.where)
    nested = {name for name, value in found.values.items() if isinstance(value, dict)}
    if not nested:
        return found
    for name in nested:
        found.section(name)
    chosen = found.section(layer_type) if layer_type is not None else None
    if chosen is None:
        raise c.refuse("rope_parameters", f"no settings for layers of type {layer_type!r}")
    return chosen


def _number(section: Config, c: Config, name: str, default: float | None) -> float:
    top = c.optional(name)
    value = section.optional(name)
    if value is None:
        value = top if top is not None else default
    if value is None:
        raise c.refuse(name, "the key is missing, and the family has no safe default for it")
    return float(value)


def scaling(c: Config, s: Config, head_dim: int) -> tuple[Any, dict[str, Any]]:
    """Kind and complete parameters of the frequency scaling in section `s`."""
    kind = s.text("rope_type", "type", default="default")
    if kind == "dynamic" and s.optional("alpha"):  # the other keys of this form are left over from yarn
        s.inert("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        return "ntk_alpha", {"alpha": s.number("alpha")}
    readers = {
        "default": _default,
        "longrope": _longrope,
        "linear": _linear,
        "yarn": _yarn,
        "llama3": _llama3,
        "mrope": _default,
    }
    if kind not in readers:
        raise s.refuse(f"rope_type = {kind!r}", f"scaling not implemented; known: {', '.join(readers)}")
    s.inert("mrope_section", "mrope_interleaved")  # all three position axes agree on text
    return ("default" if kind == "mrope" else kind), readers[kind](c, s)


def _default(c: Config, s: Config) -> dict[str, Any]:
    return {}


def _linear(c: Config, s: Config) -> dict[str, Any]:
    return {"factor": s.number("factor")}


def original_length(c: Config, s: Config) -> float:
    """Context length before extension: the config's own key first, then the section's, then the maximum."""
    inner = s.optional("original_max_position_embeddings")
    outer = c.optional("original_max_position_embeddings")
    return float(outer or inner or c.integer("max_position_embeddings"))


def _yarn(c: Config, s: Config) -> dict[str, Any]:
    original = original_length(c, s)
    factor = (
        s.number("factor", default=None)
        if s.optional("factor")
        else c.integer("max_position_embeddings") / original
    )
    mscale, all_dim = s.optional("mscale"), s.optional("mscale_all_dim")
    magnitude = s.optional("attention_factor")
    if magnitude is None:
        both = mscale and all_dim
        magnitude = (
            yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim) if both else yarn_mscale(factor)
        )
    return {
        "factor": factor,
        "original": original,
        "beta_fast": float(s.optional("beta_fast") or 32),
        "beta_slow": float(s.optional("beta_slow") or 1),
        "truncate": s.flag("truncate", default=True),
        "attention_factor": float(magnitude),
    }


def _longrope(c: Config, s: Config) -> dict[str, Any]:
    """Short factors and their magnitude: what the reference applies at every length."""
    original = original_length(c, s)
    factor = s.optional("factor") or c.integer("max_position_embeddings") / original
    implied = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    s.inert("long_factor", "long_mscale")
    magnitude = s.optional("short_mscale") or s.optional("attention_factor") or implied
    return {"factors": s.get("short_factor"), "attention_factor": float(magnitude)}


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Yarn's magnitude factor 0.1·mscale·ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_sharpening(c: Config, rotary: Rope) -> float:
    """Factor on the attention scale of latent attention under a scaled position embedding."""
    all_dim = _section(c, None).optional("mscale_all_dim")
    if rotary.kind == "default" or not all_dim:
        return 1.0
    return yarn_mscale(rotary.params["factor"], all_dim) ** 2


def _llama3(c: Config, s: Config) -> dict[str, Any]:
    return {
        "factor": s.number("factor"),
        "low_freq_factor": s.number("low_freq_factor"),
        "high_freq_factor": s.number("high_freq_factor"),
        "original": original_length(c, s),
    }
