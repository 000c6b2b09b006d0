"""Tensors that no probe token passes (multi-token prediction, vision): compared byte by byte all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_atlas.auditing.group import Group
from moe_atlas.auditing.side import Side
from moe_atlas.weights.comparison import TensorChange, compare
from moe_atlas.weights.ledger import WeightsLedger


def compare_unreplayed(sides: Sequence[Side], ledger: WeightsLedger, group: Group) -> list[dict[str, Any]]:
    """Enter what the specs skip in the ledger as class `other`; list what only one checkpoint has."""

    def compared(name: str) -> TensorChange:
        tensors = [side.reader.read(name) for side in sides]
        return compare(name, "other", None, tensors[0], tensors[1] if len(tensors) == 2 else None)

    names = [{name for name, _ in side.spec.skipped} for side in sides]
    shared = [name for name in sorted(set.intersection(*names)) if _comparable(sides, name)]
    for change in group.spread(compared, shared):
        ledger.enter(change)
    if len(sides) == 1:
        return []
    only = [("base", names[0] - names[1]), ("tuned", names[1] - names[0])]
    return [{"tensor": name, "only_in": side} for side, alone in only for name in sorted(alone)]


def _comparable(sides: Sequence[Side], name: str) -> bool:
    shapes = {side.checkpoint.logical[name].shape for side in sides}
    return len(shapes) == 1 and 0 not in next(iter(shapes))
