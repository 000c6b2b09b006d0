"""The table of window arrays: everything that an audit keeps of a window, and the form in which a receipt holds it.

The audit fills these arrays, the verifier holds a window file against them, and the derivation reads them. An array
that is not in the table is neither written nor accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moe_atlas.channels import CHANNEL, CHANNELS

SIDES = ("base", "tuned")
Place = Literal["windows", "output", "base", "tuned", "pair", "same_index", "control"]


@dataclass(frozen=True, kw_only=True)
class WindowArray:
    """One array of the window data, one row a window.

    Attributes:
        place: what it belongs to: the ``windows`` themselves, the ``output``, or at every routed layer a checkpoint
            (``base``, ``tuned``), the ``pair``, the pair by ``same_index`` before a relabelling, or a ``control``.
        key: its name there.
        dtype: as numpy names it; int32 holds counts, which are at least 0.
        tokens: how the values of a window's tokens become its row, their ``mean`` over the tokens where they are
            defined or their ``sum``; None where the audit measures it by window.
        by_expert: whether a row has one value for each expert.
        every_window: whether windows of every role have a row, or those of base domains alone.
        undefined_with: the quantity that it belongs to: an architecture without that quantity has no such array.
        stored: whether the window file holds it; otherwise the audit makes a fact out of it.
    """

    place: Place
    key: str
    dtype: Literal["float64", "int32"] = "float64"
    tokens: Literal["mean", "sum"] | None = None
    by_expert: bool = False
    every_window: bool = False
    undefined_with: str = ""
    stored: bool = True

    @property
    def name(self) -> str:
        """Its name in the window file, or at a layer what follows ``layers.N.`` there."""
        return f"{self.place}.{self.key}"

    @property
    def quantity(self) -> str:
        """The quantity that an architecture has to define."""
        return self.undefined_with or self.key

    def at(self, layer: int) -> str:
        """Return its name in the window file at a routed layer."""
        return f"layers.{layer}.{self.name}"


HEALTH = (
    *("set_margin", "group_margin", "overlap", "overlap_specificity", "jump", "jump_idealised", "field_norm"),
    "smooth_overlap",
)
"""Of each checkpoint, a mean over tokens."""
TAILS = ("overlap_low", "overlap_high", "jump_low")
"""Of each checkpoint, sum and count over the tokens of a tail of the margins."""
BUDGET = ("actual", "router_term", "content_term", "bound", "base_norm")
"""Of a pair, the perturbation budget (Eq. 15)."""
FLIPS = ("changed", "inside", "outside")
"""Of a pair, how many tokens change their set, and how many of them inside and outside the noise band."""
CONTROLS = ("raw_norm_drift", "raw_state_drift")
NON_FINITE = "non_finite"
METRICS = ("nll", "token_accuracy", "exact_match")


def _of_side(side: Literal["base", "tuned"]) -> tuple[WindowArray, ...]:
    return (
        *(WindowArray(place=side, key=key, tokens="mean") for key in HEALTH),
        WindowArray(place=side, key="radial_to_tangent", tokens="mean", stored=False),
        WindowArray(place=side, key="counts", dtype="int32", by_expert=True),
        WindowArray(place=side, key="rho", by_expert=True),
        WindowArray(place=side, key=NON_FINITE, dtype="int32", every_window=True),
        *(WindowArray(place=side, key=f"{tail}.sum") for tail in TAILS),
        *(WindowArray(place=side, key=f"{tail}.count", dtype="int32") for tail in TAILS),
    )


def _of_pair(place: Literal["pair", "same_index"]) -> tuple[WindowArray, ...]:
    budget = "perturbation_budget"
    measured = [channel for channel in CHANNELS if channel.kind in ("drift", "surrogate", "format")]
    return (
        *(WindowArray(place=place, key=channel.key, tokens="mean") for channel in measured),
        *(WindowArray(place=place, key=f"flips.{key}", dtype="int32", tokens="sum") for key in FLIPS),
        *(
            WindowArray(place=place, key=f"{budget}.{key}", tokens="mean", undefined_with=budget)
            for key in BUDGET
        ),
    )


def _of_experts() -> tuple[WindowArray, ...]:
    channel = CHANNEL["expert_content"]
    content = channel.undefined_with
    return (
        WindowArray(place="pair", key=f"{channel.key}.sum", by_expert=True, undefined_with=content),
        WindowArray(
            place="pair", key=f"{channel.key}.count", dtype="int32", by_expert=True, undefined_with=content
        ),
    )


WINDOWS = tuple(
    WindowArray(place="windows", key=key, dtype="int32", every_window=True)
    for key in ("domain", "document", "tokens", "scored")
)
OUTPUTS = {
    key: WindowArray(place="output", key=key, every_window=True)
    for key in (
        *(f"{key}_{side}" for side in SIDES for key in (*METRICS, NON_FINITE)),
        *("kl", "top1_agreement"),
    )
}
"""By key."""
LAYER_ARRAYS = {
    array.name: array
    for array in (
        *_of_side("base"),
        *_of_side("tuned"),
        *_of_pair("pair"),
        *_of_pair("same_index"),
        *_of_experts(),
        *(WindowArray(place="control", key=key, tokens="mean") for key in CONTROLS),
    )
}
"""By what follows ``layers.N.`` in their names."""
