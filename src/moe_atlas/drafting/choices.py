"""Window length, stride, number of documents and protected layers, each with its reason.

Shape legend: L routed layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from moe_atlas.drafting.documents import Surveyed
from moe_atlas.models.spec import ModelSpec
from moe_atlas.probes.settings.protected_layers import mid_band
from moe_atlas.text import ranges

LENGTHS = (512, 256, 128, 64, 32, 16)  # tokens of a window; longer ones cost more and add no document
DOCUMENTS = 120  # a domain's evidence; see docs/probes.md
HELD = 0.9  # share of a small domain's documents that must hold a window
STRIDES = (8, 4, 2)
PER_EXPERT = (
    512  # evaluated tokens of the mean expert: eight times what its own interval needs, as loads are uneven
)
FEW_LAYERS = 4  # a model of so few routed layers has no middle


class Choice(NamedTuple):
    """A value and its reason."""

    value: int | str
    reason: str


def window_tokens(domains: Sequence[Surveyed], context: int | None, front: int) -> Choice:
    """Return the longest window that enough documents of every base domain hold, and that the model reads.

    Args:
        domains: all domains.
        context: tokens that the model reads at once; None if its configuration does not say.
        front: 1 if every window begins with a special token, else 0.
    """
    readable = [length for length in LENGTHS if context is None or length <= context] or [LENGTHS[-1]]
    cut = [domain for domain in domains if domain.given.role == "base"]

    def held(length: int) -> bool:
        return all(
            domain.long_enough(length - front) >= min(DOCUMENTS, math.ceil(HELD * domain.total))
            for domain in cut
        )

    tokens = next((length for length in readable if held(length)), readable[-1])
    reads = "" if context is None else f"; the model reads up to {context}"
    if tokens == readable[0]:
        return Choice(tokens, f"enough documents are this long{reads}")
    return Choice(tokens, f"fewer documents hold {readable[readable.index(tokens) - 1]} tokens{reads}")


def documents(domain: Surveyed, tokens: int) -> int:
    """Return how many documents to register: those that hold a window, at most `DOCUMENTS`."""
    found = domain.long_enough(tokens)
    if domain.total > len(domain.lengths):
        found = int(HELD * found)  # estimated from those that were looked at
    return max(1, min(DOCUMENTS, found))


def token_stride(spec: ModelSpec, tokens: int) -> Choice:
    """Return the largest stride that leaves every expert enough tokens on average.

    Args:
        spec: the base checkpoint.
        tokens: tokens of all base windows.
    """
    routers = [layer.moe.router for layer in spec.layers if layer.moe]
    share = min((router.top_k / router.experts for router in routers), default=1.0)
    stride = next((stride for stride in STRIDES if tokens * share / stride >= PER_EXPERT), 1)
    return Choice(
        stride, f"{tokens // stride} tokens, {tokens * share / stride:.0f} for the mean expert of a layer"
    )


def protected(spec: ModelSpec) -> Choice:
    """Return the protected layers of this model: its middle, or all layers if it has few."""
    routed = spec.routed_layers
    every = f"{len(routed)} of {len(spec.layers)} layers are routed ({ranges(routed)})"
    if len(routed) <= FEW_LAYERS:
        return Choice("all", every)
    return Choice("mid-band", f"{every}; the middle is {ranges(mid_band(routed))}")
