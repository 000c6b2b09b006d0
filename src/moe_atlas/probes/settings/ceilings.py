"""The range within which a budget is informative."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moe_atlas.channels import BUDGETS

HALF = 0.5
"""A budget at half of its range or above lets unrelated checkpoints pass. Two independent states are 1 apart, of at
most 2. Independent updates of equal norm are 0.71 apart, of at most 1. Sets drawn independently are 1 - k/E apart, of
at most 1, where k is at most E/2. The overlap of unrelated experts is 0, in the middle between 1 and -1."""
FLOOR_FACTOR = 10.0  # a budget below this multiple of the noise floor measures the machine, not the tune
FEWEST_TOKENS = 256  # no vocabulary in use is smaller than that of bytes

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
"""For each limit on a loss: the value from which on the limit is uninformative, and the reason."""


def toothless(key: str, layers: Sequence[tuple[int, int]] = ()) -> float:
    """Return the value from which on a budget of `policy.rewrite` or a limit on a loss is uninformative.

    Args:
        key: the budget.
        layers: experts and k of each layer under the budget; empty if the model is not known.
    """
    if key in LOSSES:
        return LOSSES[key][0]
    ceiling = BUDGETS[key].ceiling
    return HALF * max((ceiling(*layer) for layer in layers), default=ceiling())
