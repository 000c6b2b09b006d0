"""Entering a layer's tensors in the weights ledger, the routed experts aside, which are looked at as they pass."""

from __future__ import annotations

from collections.abc import Sequence

from moe_atlas.auditing.layer.requantise import compared
from moe_atlas.auditing.layer.side import Weights
from moe_atlas.auditing.walk import Walk
from moe_atlas.models.spec import TensorRef
from moe_atlas.weights.comparison import TensorChange


def record_weights(
    walk: Walk,
    layer: int | None,
    refs: Sequence[Sequence[TensorRef]],
    as_stored: Weights | None = None,
) -> None:
    """Enter the tensors at hand, `refs` of each checkpoint, in the weights ledger.

    Beside them go those that a relabelling reordered, as the tuned checkpoint stores them.
    """
    base, *others = (side.resident for side in walk.sides)
    counterparts = [{ref.role: ref for ref in side_refs} for side_refs in refs]
    pairs = [[by_role[ref.role] for by_role in counterparts] for ref in refs[0]]

    def change(work: tuple[Sequence[TensorRef], Sequence[Weights]]) -> TensorChange:
        both, residents = work
        role = both[0].role
        look = compared(walk.sides, both, [weights[role] for weights in residents])
        return look.change(both[0].name, both[0].kind, layer)

    for found in walk.group.spread(change, [(both, [base, *others]) for both in pairs]):
        walk.evidence.ledger.enter(found)
    moved = [(both, [base, as_stored]) for both in pairs if as_stored and both[0].role in as_stored]
    for found in walk.group.spread(change, moved):
        walk.evidence.ledger.enter(found, as_stored=True)
