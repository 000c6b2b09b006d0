"""What to try first, once it is known which object failed: Table 14 and what stands beside it, each advice once."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple


class Advice(NamedTuple):
    """A pattern of evidence, the object that probably failed, and the first thing to try."""

    pattern: str
    failed: str
    first: str

    def step(self) -> dict[str, str]:
        """The advice as a next step of a receipt."""
        return {"pattern": self.pattern, "object": self.failed, "first": self.first}


BASELINE = Advice(
    "a baseline, no comparison yet",
    "a missing receipt, not a model failure",
    "do nothing except collect the first comparison against this baseline",
)
LOOK = Advice(
    "a look, not a verdict",
    "nothing was registered",
    "register a probe set and audit the pair: atlas init, then atlas register, then atlas audit",
)
BROKEN = {
    "non_finite_weights": Advice(
        "non-finite weights", "the saved weights", "save or convert the checkpoint again"
    ),
    "non_finite_output": Advice(
        "the tuned checkpoint computes NaN or infinity",
        "the saved weights",
        "look for an overflow from the layer named in the evidence on: a scale that was lost, or a conversion to a "
        "narrower dtype; more documents do not help",
    ),
    "identity": Advice(
        "experts are not where they were",
        "the expert layout",
        "check the save, shard and load path of the experts named in the evidence before anything else",
    ),
    "vocabulary_rows": Advice(
        "rows of embedding or head are not what they were",
        "the vocabulary",
        "check what resized, merged or sorted the vocabulary: embedding and head rows are named in the evidence",
    ),
    "weights": Advice(
        "a registered weight rule is breached",
        "the training or merge step",
        "check which parameters the optimiser and the merge step really wrote",
    ),
}
"""By the gate that failed, broken files first: no training repairs a bad save."""

OVERLAP_AND_OCCUPANCY = Advice(
    "overlap worsens and occupancy degrades",
    "co-active overlap failure plus a narrowed visited region",
    "regularise endpoints or adapters, or control the router prior, at matched scalar success; "
    "do not keep training passively",
)
OVERLAP = Advice(
    "overlap worsens with healthy occupancy",
    "atlas drift without occupancy collapse",
    "inspect the protected layers first; tighten chart-preserving controls before changing experts",
)
OCCUPANCY = Advice(
    "occupancy narrows", "a narrowed visited region", "check load balancing and the data mix of this stage"
)
MARGINS = Advice(
    "set margins fall while overlap is stable",
    "boundary-local routing",
    "check gain drift, thresholding and boundary-local router behaviour before a broad intervention",
)
MOVED = Advice(
    "protected layers moved beyond budget",
    "the channels named in the evidence",
    "restrict the update to adapters and endpoint layers, then control the router prior",
)
REPAIR = Advice(
    "overlap and occupancy recover",
    "a genuine repair is plausible",
    "continue, and require repeated gates before declaring recovery",
)
EVIDENCE = Advice(
    "gates stayed open",
    "the evidence, not yet the model",
    "read the reasons in the evidence; where the interval is too wide, register more documents a domain",
)


def broken(failed: Set[str]) -> list[Advice]:
    """What to do about files that are broken, by the gates that failed."""
    return [advice for gate, advice in BROKEN.items() if gate in failed]


def geometric(*, overlap: bool, occupancy: bool, margins: bool) -> Advice | None:
    """Read what became worse jointly; None where nothing did.

    Args:
        overlap: the overlap of co-active experts.
        occupancy: how broadly experts are used.
        margins: the set margins.
    """
    if overlap:
        return OVERLAP_AND_OCCUPANCY if occupancy else OVERLAP
    if occupancy:
        return OCCUPANCY
    return MARGINS if margins else None
