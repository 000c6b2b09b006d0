"""Read position-embedding settings of both config generations.

Older configs hold `rope_theta` and `rope_scaling`, newer ones a single `rope_parameters`, which may be
nested by the type of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from moe_atlas.configuration.config import DISAGREE, KEEP, Config, agreed
from moe_atlas.configuration.unread import same
from moe_atlas.models.mixers import Rope

SECTIONS = ("rope_parameters", "rope_scaling")


def rope(
    c: Config,
    head_dim: int,
    *,
    pairing: Literal["halves", "pairs"] = "halves",
    arithmetic: Literal["native", "float32", "mixed"] = "native",
    theta: float | None = None,
    partial: float = 1.0,
    layer_type: str | None = None,
    elsewhere: Sequence[tuple[Config, str]] = (),
    inherited: bool = False,
) -> Rope:
    """Return the rotary embedding that a config describes.

    A config of a transitional version holds the settings twice; both copies must agree.

    Args:
        c: the config section of the text model.
        head_dim: dimensions of a head that could rotate, before any partial factor.
        pairing: which two dimensions form a plane.
        arithmetic: the dtype rule, see `Rope`.
        theta: the base of the family's configuration class, if the config gives none.
        partial: rotated share of the head, if the config gives none.
        layer_type: key of the nested form, for families whose layers rotate by type; such a config has no other form.
        elsewhere: further places of the base; without them, `rope_theta`.
        inherited: whether settings of a layer type without a rotated share take the share one level above.

    Raises:
        InputRefused: `E_FAMILY` for a missing or contradicted setting and for a scaling that is not implemented.
    """
    sections = settings(c, layer_type)
    flat = layer_type is None
    if not flat and not inherited:
        _beside(c, "partial_rotary_factor", [1.0])
    if not flat and not elsewhere:
        _beside(c, "rope_theta", [])
    bases = [*((s, "rope_theta") for s in sections), *(elsewhere or ([(c, "rope_theta")] if flat else []))]
    base = agreed(*bases, kind=float, **({} if theta is None else {"default": theta}))
    around = [(c, "partial_rotary_factor")] if flat or inherited else []
    shares = [*((s, "partial_rotary_factor") for s in sections), *around]
    share = agreed(*shares, default=partial, null=1.0, kind=float)
    scalings = [scaling(c, section, head_dim) for section in sections] or [("default", {})]
    if any(other != scalings[0] for other in scalings):
        raise c.refuse("rope_parameters and rope_scaling", f"two scalings that differ, {DISAGREE}", KEEP)
    if not 0 < share <= 1:
        raise c.refuse(
            f"partial_rotary_factor = {share}", "expected a share of a head, above 0 and at most 1"
        )
    kind, params = scalings[0]
    if kind == "proportional":  # the planes of a whole rotation; planes past the share do not turn
        params, share = params | {"planes": int(share * head_dim // 2)}, 1.0
    return Rope(int(head_dim * share), base, pairing, arithmetic, kind, params)


def _beside(c: Config, name: str, default: list[float]) -> None:
    """Refuse a setting beside the settings by layer type that agrees with none of them; only the latter are read."""
    whole = next(section for key in SECTIONS if (section := c.section(key)) is not None and section.values)
    inner = [value for value in whole.values.values() if isinstance(value, dict)]
    stated = [value[name] for value in inner if value.get(name) is not None]
    stated += default if len(stated) < len(inner) else []
    for level in (c, whole):
        value = level.optional(name)
        if value is not None and not any(same(value, one) for one in stated):
            raise c.refuse(
                f"{name} = {value!r}", f"no type of layer says so in rope_parameters, {DISAGREE}", KEEP
            )


def settings(c: Config, layer_type: str | None = None) -> list[Config]:
    """Return the sections on the rotation: one in nearly every config, two in a transitional config, or none."""
    found = [section for name in SECTIONS if (section := c.section(name)) is not None and section.values]
    if layer_type is not None:
        return [_of_type(c, found, layer_type)]
    for section in found:
        nested = [name for name, value in section.values.items() if isinstance(value, dict)]
        if nested:
            raise c.uncomputed(
                "rope_parameters", f"settings by type of layer ({', '.join(nested)}) are not read here"
            )
    return found


def _of_type(c: Config, sections: Sequence[Config], layer_type: str) -> Config:
    """Return the settings of a type of layer from the only section that may hold them."""
    chosen = sections[0].section(layer_type) if len(sections) == 1 else None
    if chosen is None:
        raise c.refuse(
            "rope_parameters", f"expected settings for layers of type {layer_type!r} there, and only there"
        )
    # A model need not have layers of every type.
    others = (name for name, value in sections[0].values.items() if isinstance(value, dict))
    sections[0].inert(*others, why="settings of other layers")
    chosen.number("rope_theta")  # readers differ in its default, so it must be written
    chosen.expect("truncate", True)  # the reference looks for it one level above
    return chosen


def scaling(c: Config, s: Config, head_dim: int) -> tuple[Any, dict[str, Any]]:
    """Return kind and complete parameters of the frequency scaling in section `s`."""
    kind = s.text("rope_type", "type", default="default")
    if kind == "dynamic" and s.optional("alpha"):  # the other keys of this form are left over from yarn
        s.inert("beta_fast", "beta_slow", "mscale", "mscale_all_dim", why="left over from yarn")
        s.get("factor")  # the reference demands it, and computes without it
        return "ntk_alpha", {"alpha": s.number("alpha")}
    readers = {
        "default": _default,
        "longrope": _longrope,
        "linear": _linear,
        "yarn": _yarn,
        "llama3": _llama3,
        "mrope": _default,
        "proportional": _proportional,
    }
    if kind not in readers:
        raise s.refuse(f"rope_type = {kind!r}", f"scaling not implemented; known: {', '.join(readers)}")
    s.inert("mrope_section", "mrope_interleaved", why="all three position axes agree on text")
    return ("default" if kind == "mrope" else kind), readers[kind](c, s)


def _default(c: Config, s: Config) -> dict[str, Any]:
    return {}


def _linear(c: Config, s: Config) -> dict[str, Any]:
    return {"factor": s.number("factor")}


def _proportional(c: Config, s: Config) -> dict[str, Any]:
    return {"factor": s.number("factor", default=1.0)}


def original_length(c: Config, s: Config) -> float:
    """Return the context length before extension; the maximum length if no key gives it."""
    name = "original_max_position_embeddings"
    stated = agreed((s, name), (c, name), default=None, kind=float)
    return c.number("max_position_embeddings") if stated is None else float(stated)


def _yarn(c: Config, s: Config) -> dict[str, Any]:
    original = original_length(c, s)
    factor = s.number("factor", null=None) or c.integer("max_position_embeddings") / original
    mscale, all_dim = (s.number(name, default=None, null=None) for name in ("mscale", "mscale_all_dim"))
    implied = yarn_mscale(factor)
    if mscale and all_dim:
        implied = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    magnitude = s.number("attention_factor", default=None, null=None)
    if magnitude is not None and mscale and all_dim and not math.isclose(magnitude, implied, rel_tol=1e-6):
        s.implied("attention_factor", implied, "mscale and mscale_all_dim")
    return {
        "factor": factor,
        "original": original,
        "beta_fast": s.number("beta_fast", default=32.0, null=32.0) or 32.0,
        "beta_slow": s.number("beta_slow", default=1.0, null=1.0) or 1.0,
        "truncate": s.flag("truncate", default=True),
        "attention_factor": implied if magnitude is None else magnitude,
    }


def _longrope(c: Config, s: Config) -> dict[str, Any]:
    """Return the short factors and their magnitude, which the reference applies at every length."""
    original = original_length(c, s)
    factor = s.number("factor", default=None, null=None) or c.integer("max_position_embeddings") / original
    implied = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    s.get("long_factor")
    s.inert("long_mscale", why="the reference applies the short one at every length")
    magnitude = s.number("short_mscale", "attention_factor", default=None, null=None) or implied
    return {"factors": s.get("short_factor", kind=list), "attention_factor": magnitude}


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Return yarn's magnitude factor 0.1·mscale·ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_sharpening(c: Config, rotary: Rope) -> float:
    """Return the factor on the attention scale of latent attention under a scaled position embedding."""
    places = [(section, "mscale_all_dim") for section in settings(c)]
    all_dim = agreed(*places, default=None, null=None, kind=float) if places else None
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
