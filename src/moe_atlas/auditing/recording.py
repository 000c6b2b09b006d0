"""Recording of a layer's resident tensors in the weights ledger; `LayerExperts` records the routed experts."""

from __future__ import annotations

from collections.abc import Sequence

from moe_atlas.auditing.layer.requantise import compare_tensors
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
    """Enter the resident tensors in the weights ledger.

    Args:
        walk: the walk.
        layer: layer index; None outside the layers.
        refs: references to the resident tensors of each checkpoint.
        as_stored: tensors that a relabelling reordered, in the tuned checkpoint's own order; the ledger also compares
            them with the base under equal stored indices.
    """
    residents = [side.resident for side in walk.sides]
    by_role = [{ref.role: ref for ref in side_refs} for side_refs in refs]
    pairs = [[counterparts[ref.role] for counterparts in by_role] for ref in refs[0]]

    def change(work: tuple[Sequence[TensorRef], Sequence[Weights]]) -> TensorChange:
        pair, weights = work
        role = pair[0].role
        comparison = compare_tensors(walk.sides, pair, [tensors[role] for tensors in weights])
        return comparison.change(pair[0].name, pair[0].kind, layer)

    for row in walk.group.spread(change, [(pair, residents) for pair in pairs]):
        walk.evidence.ledger.enter(row)
    if as_stored:
        reordered = [(pair, [residents[0], as_stored]) for pair in pairs if pair[0].role in as_stored]
        for row in walk.group.spread(change, reordered):
            walk.evidence.ledger.enter(row, as_stored=True)
