"""What a budget must stay below, and above, to say anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moe_atlas.channels import BUDGETS

HALF = 0.5
"""A budget at half of its range or above lets unrelated checkpoints pass: two independent states are 1 of at most 2
apart, independent updates of equal norm 0.71 of 1, sets drawn independently 1 - k/E of 1, and k is at most E/2; the
overlap of unrelated experts is 0, in the middle between 1 and -1."""
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
"""By limit on a loss: from where on it says nothing, and why."""


def toothless(key: str, layers: Sequence[tuple[int, int]] = ()) -> float:
    """Return from where on a budget of `policy.rewrite` or a limit on a loss says nothing.

    Args:
        key: the budget.
        layers: experts and k of each layer that it is held against; none where the model is not known.
    """
    if key in LOSSES:
        return LOSSES[key][0]
    ceiling = BUDGETS[key].ceiling
    return HALF * max((ceiling(*layer) for layer in layers), default=ceiling())
