"""Rotary position embeddings.

Legend: S positions, R rotated dimensions of a head, W windows, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moe_atlas.models.mixers import Rope


def frequencies(rope: Rope, device: torch.device | None = None) -> tuple[Tensor, float]:
    """Return the angular frequency of each plane, float32 [R/2], and the factor on cos and sin."""
    theta = rope.theta
    if rope.kind == "ntk_alpha":
        theta *= rope.params["alpha"] ** (rope.dim / (rope.dim - 2))
    steps = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    plain = 1.0 / (theta**steps)
    inverse, factor = {
        "default": _default, "ntk_alpha": _default, "linear": _linear, "yarn": _yarn,
        "llama3": _llama3, "longrope": _longrope, "proportional": _proportional,
    }[rope.kind](plain, rope)  # fmt: skip
    return inverse.to(device), factor


def _default(plain: Tensor, rope: Rope) -> tuple[Tensor, float]:
    return plain, 1.0


def _linear(plain: Tensor, rope: Rope) -> tuple[Tensor, float]:
    return plain / rope.params["factor"], 1.0


def _yarn(plain: Tensor, rope: Rope) -> tuple[Tensor, float]:
    """Interpolate slow planes, keep fast planes, and ramp between the two rotation counts."""
    p = rope.params
    low, high = (_dimension(p[beta], rope, p) for beta in ("beta_fast", "beta_slow"))
    if p["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    span = (high - low) or 0.001
    ramp = torch.clamp((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / span, 0, 1)
    keep = 1 - ramp
    slowed = 1.0 / (p["factor"] * (1.0 / plain))
    return slowed * (1 - keep) + plain * keep, p["attention_factor"]


def _dimension(rotations: float, rope: Rope, p: Mapping[str, Any]) -> float:
    """Return the dimension whose plane rotates `rotations` times within the original context."""
    return rope.dim * math.log(p["original"] / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))


def _llama3(plain: Tensor, rope: Rope) -> tuple[Tensor, float]:
    """Divide slow planes by the factor, keep fast planes, and blend by wavelength in between."""
    p = rope.params
    wavelength = 2 * math.pi / plain
    slow = wavelength > p["original"] / p["low_freq_factor"]
    fast = wavelength < p["original"] / p["high_freq_factor"]
    scaled = torch.where(slow, plain / p["factor"], plain)
    # Equal factors make this 0/0 or x/0; no plane lies in between then, so the value is never selected.
    blend = (p["original"] / wavelength - p["low_freq_factor"]) / torch.tensor(
        p["high_freq_factor"] - p["low_freq_factor"]
    )
    smooth = (1 - blend) * scaled / p["factor"] + blend * scaled
    return torch.where(~fast & ~slow, smooth, scaled), 1.0


def _longrope(plain: Tensor, rope: Rope) -> tuple[Tensor, float]:
    factors = torch.tensor(rope.params["factors"], dtype=torch.float32)
    return 1.0 / (factors * (1.0 / plain)), rope.params["attention_factor"]


def _proportional(plain: Tensor, rope: Rope) -> tuple[Tensor, float]:
    """Keep the frequencies of the first planes; the other planes have frequency 0 and do not turn."""
    turning = torch.arange(len(plain)) < rope.params["planes"]
    return torch.where(turning, plain, torch.zeros_like(plain)) / rope.params["factor"], 1.0


def tables(rope: Rope, length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin, [S, R/2], for positions 0 … S−1, in the dtype in which they multiply q and k."""
    inverse, factor = frequencies(rope, device)
    angle_SR = torch.arange(length, dtype=torch.float32, device=device)[:, None] * inverse
    cos, sin = angle_SR.cos() * factor, angle_SR.sin() * factor
    if rope.arithmetic == "float32":
        return cos, sin
    rounded = cos.to(dtype), sin.to(dtype)
    return (rounded[0].float(), rounded[1].float()) if rope.arithmetic == "mixed" else rounded


def rotate_last(x_WHSR: Tensor, cos_SR: Tensor, sin_SR: Tensor, rope: Rope) -> Tensor:
    """Rotate the last `rope.dim` dimensions of every head in place; the other dimensions stay as they are."""
    rest, rotated = x_WHSR[..., : -rope.dim], x_WHSR[..., -rope.dim :].to(cos_SR.dtype)
    paired = rotated.unflatten(-1, (-1, 2)) if rope.pairing == "pairs" else rotated.unflatten(-1, (2, -1)).mT
    first, second = paired.unbind(-1)
    both = torch.stack((first * cos_SR - second * sin_SR, second * cos_SR + first * sin_SR), dim=-1)
    whole = (both if rope.pairing == "pairs" else both.mT).flatten(-2)
    return torch.cat((rest, whole.to(x_WHSR.dtype)), dim=-1)


def rotate(x_WHSR: Tensor, cos_SR: Tensor, sin_SR: Tensor, rope: Rope) -> Tensor:
    """Rotate the first `rope.dim` dimensions of every head; the other dimensions stay as they are.

    The result holds the planes as two halves whatever the pairing. This permutes q and k alike, so their products
    stay the same.
    """
    rotated, rest = x_WHSR[..., : rope.dim].to(cos_SR.dtype), x_WHSR[..., rope.dim :]
    if rope.pairing == "pairs":
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = rotated.chunk(2, dim=-1)
    halves = (first * cos_SR - second * sin_SR, second * cos_SR + first * sin_SR)
    return torch.cat((*(half.to(x_WHSR.dtype) for half in halves), rest), dim=-1)
