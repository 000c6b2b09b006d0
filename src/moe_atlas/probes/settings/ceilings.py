"""How far the quantity of each budget can go, and what a budget must stay below to say anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

HALF = 0.5
"""A budget at half of its range or above lets unrelated checkpoints pass: two independent states are 1 of at most 2
apart, independent updates of equal norm 0.71 of 1, sets drawn independently 1 - k/E of 1, and k is at most E/2; the
overlap of unrelated experts is 0, in the middle between 1 and -1."""
MOST_EXPERTS = 1 << 16  # no layer has more; what holds for so many holds for any model
FEWEST_TOKENS = 256  # no vocabulary in use is smaller than that of bytes

CEILINGS = {
    "coordinate": 2.0,
    "boundary": 1.0,
    "transition": math.log(2.0),
    "content": 1.0,
    "expert_content": 1.0,
    "overlap_drop": 2.0,
    "dead_share_rise": 1.0,
    "entropy_drop": math.inf,
    "load_cv_rise": math.inf,
}
"""By budget of `policy.rewrite`: the largest value its quantity can take, infinite where that depends on the model."""

_GUESS = math.log(FEWEST_TOKENS)
LOSSES = {
    "nll": (math.log(2.0), "lets the perplexity of a base domain double"),
    "kl": (math.log(2.0), "lets the perplexity of the base's own text double"),
    "document_nll": (
        HALF * _GUESS,
        "lets a document go half of the way from certainty to a guess among 256 bytes",
    ),
    "document_share": (HALF, "lets half of the documents be damaged"),
    "max_nll_increase": (
        HALF * _GUESS,
        "lets a canary go half of the way from certainty to a guess among 256 bytes",
    ),
}
"""By limit on a loss: from where on it says nothing, and why."""


def ceiling(key: str, experts: int = MOST_EXPERTS, top_k: int = 1) -> float:
    """Return the largest value of a budget's quantity in a layer of so many experts, `top_k` of them in use.

    A load that falls on the same k of E experts has entropy ln k instead of ln E, and a coefficient of variation of
    sqrt(E/k - 1) instead of 0. Without a model the result holds for every one.
    """
    if key == "entropy_drop":
        return math.log(experts / top_k)
    if key == "load_cv_rise":
        return math.sqrt(max(0.0, experts / top_k - 1.0))
    return CEILINGS[key]


def toothless(key: str, layers: Sequence[tuple[int, int]] = ()) -> float:
    """Return from where on a budget of `policy.rewrite` or a limit on a loss says nothing.

    Args:
        key: the budget.
        layers: experts and k of each layer that it is held against; none where the model is not known.
    """
    if key in LOSSES:
        return LOSSES[key][0]
    return HALF * max((ceiling(key, *layer) for layer in layers), default=ceiling(key))
