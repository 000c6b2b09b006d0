"""Tensors that no probe token passes (multi-token prediction, vision, scales of activations): compared all the same.

A server may use them, and no channel of the audit sees them. So each is read, held against its counterpart, and counted
by the part of the checkpoint that it belongs to; the verdict gates on these counts.

Legend: N what is squared (base, tuned, change), R rows, K entries of the leading dimension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.auditing.layer.requantise import narrowing
from moe_atlas.auditing.layer.side import Side
from moe_atlas.auditing.processes.group import Group
from moe_atlas.weights.comparison import Comparison, TensorChange
from moe_atlas.weights.ledger import WeightsLedger

ELEMENTS = 1 << 23  # of one tensor that are in memory at a time
NAMED = 8  # tensors that a row names, worst first
FINDINGS = ("nonfinite", "zeroed", "replaced", "missing", "added", "reshaped", "changed")
"""What may be said of a tensor that is not identical, worst first; one each."""
MOVED = 0.5  # of the base's norm: beyond, a tensor is called replaced; tunes move it by a few hundredths
ROW = 8  # elements of a row that do not all become zero by chance
SCALED = 8.0  # factor between two scales of activations: what one calibration sees, another may not

Found = tuple[str, TensorChange | None]


def compare_unreplayed(sides: Sequence[Side], ledger: WeightsLedger, group: Group) -> list[dict[str, Any]]:
    """Enter what both checkpoints have in the ledger, as class `other`, and return what was found, one row a part.

    Raises:
        InputRefused: E_NONFINITE when a tensor of the base that the tuned checkpoint has as well is not finite.
    """
    parts = {skipped.name: skipped.part for side in sides for skipped in side.spec.skipped}
    found = group.spread(lambda name: _examine(sides, name, parts[name]), sorted(parts))
    for _, change in found:
        if change is not None:
            ledger.enter(change)
    if len(sides) == 1:
        return []
    said = dict(zip(sorted(parts), (finding for finding, _ in found), strict=True))
    held = [{skipped.name for skipped in side.spec.skipped} for side in sides]
    return [
        _row(part, {name: said[name] for name in said if parts[name] == part}, held)
        for part in sorted(set(parts.values()))
    ]


def values_alone(side: Side, known: Collection[str], group: Group) -> dict[str, str | None]:
    """Digests of the values of what is not replayed and the ledger does not know: it has no counterpart."""
    names = [skipped.name for skipped in side.spec.skipped if skipped.name not in known]

    def values(name: str) -> str | None:
        shape = tuple(side.checkpoint.logical[name].shape)
        return _taken_in([side], name, shape).change(name, "other", None).values[0]

    return dict(zip(names, group.spread(values, names), strict=True))


def nothing_differs(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every tensor that is not replayed holds the same values in both checkpoints."""
    return not any(row[finding] for row in rows for finding in FINDINGS)


def _row(part: str, said: Mapping[str, str], held: Sequence[set[str]]) -> dict[str, Any]:
    """How many tensors of a part each checkpoint has, how many are what, and some names of those to look at."""
    counts = Counter(said.values())
    worst = [name for finding in FINDINGS[:-1] for name in said if said[name] == finding]
    return {
        "part": part,
        "tensors": {
            side: len(names & said.keys()) for side, names in zip(("base", "tuned"), held, strict=True)
        },
        "identical": counts["identical"],
        **{finding: counts[finding] for finding in FINDINGS},
        "named": [{"tensor": name, "is": said[name]} for name in worst[:NAMED]],
    }


def _examine(sides: Sequence[Side], name: str, part: str) -> Found:
    """What is to be said of one tensor, and its row of the ledger where there is one."""
    stored = [side.checkpoint.logical.get(name) for side in sides]
    shapes = [None if tensor is None else tuple(tensor.shape) for tensor in stored]
    if len(sides) == 1 or (None not in shapes and len(set(shapes)) == 1):
        return _compare(sides, name, part, shapes[0] or ())
    lone = "missing" if shapes[1] is None else "added" if shapes[0] is None else "reshaped"
    finite = shapes[1] is None or 0 in shapes[1] or _finite(sides[1], name, shapes[1])
    return (lone if finite else "nonfinite"), None


def _compare(sides: Sequence[Side], name: str, part: str, shape: tuple[int, ...]) -> Found:
    if 0 in shape:
        return "identical", None
    comparison = _taken_in(sides, name, shape)
    change = comparison.change(name, "other", None)
    if change.identical is not False:
        return "identical", change
    if change.nonfinite[1]:
        return "nonfinite", change
    return _finding(
        np.stack([comparison.squares_of_rows(number) for number in range(3)]), shape, part
    ), change


def _finding(squares_NR: NDArray[np.float64], shape: tuple[int, ...], part: str) -> str:
    """Judge a changed tensor, entry by entry of a leading dimension that tells experts or layers apart.

    A tune moves a tensor by a few per cent of its norm, and makes no row zero. One that lost its values or its
    direction is no tune of it, whatever else it may be.
    """
    base_K, tuned_K, change_K = squares_NK = _by_entry(squares_NR, shape)
    for base, tuned, _ in (squares_NK, squares_NR) if shape and shape[-1] >= ROW else (squares_NK,):
        if ((base > 0) & (tuned == 0)).any():
            return "zeroed"
    if part == "activation_scales":
        far_K = (tuned_K > SCALED**2 * base_K) | (tuned_K < base_K / SCALED**2)
    else:
        far_K = change_K > MOVED**2 * base_K
    return "replaced" if (far_K & (base_K > 0)).any() else "changed"


def _by_entry(squares_NR: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Sums of squares by rows, added up to entries of the leading dimension, or to one below three dimensions."""
    squares_NK: NDArray[np.float64] = squares_NR.reshape(3, shape[0] if len(shape) > 2 else 1, -1).sum(2)
    return squares_NK


def _finite(side: Side, name: str, shape: tuple[int, ...]) -> bool:
    return not _taken_in([side], name, shape).change(name, "other", None).nonfinite[0]


def _taken_in(sides: Sequence[Side], name: str, shape: tuple[int, ...]) -> Comparison:
    """Read a tensor of one or both checkpoints in bounded pieces."""
    comparison = Comparison(shape, narrowing(sides, [name] * len(sides)))
    decoded = any(name in side.checkpoint.encoded for side in sides)
    for index, rows in _pieces(shape, decoded=decoded):
        tensors = [side.reader.read(name, index, rows) for side in sides]
        comparison.add(tensors[0], tensors[1] if len(tensors) == 2 else None)
    return comparison


def _pieces(shape: tuple[int, ...], *, decoded: bool) -> Iterator[tuple[int | None, range | None]]:
    """What to read at a time: (entry, rows) of the leading dimension; quantised stacks are decoded by entry."""
    if 0 in shape:
        return
    if decoded and len(shape) > 2:
        yield from ((index, None) for index in range(shape[0]))
    elif not shape:
        yield None, None
    else:
        step = max(1, ELEMENTS * shape[0] // int(np.prod(shape)))
        yield from ((None, range(first, min(first + step, shape[0]))) for first in range(0, shape[0], step))
