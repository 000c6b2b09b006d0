"""Comparison of the tensors that the replay skips: multi-token prediction, vision, scales of activations.

A server may use these tensors, but no channel of the audit covers them. So the audit compares each tensor with its
counterpart, and counts the findings by part of the checkpoint. The verdict gates on these counts.

Legend: N the squared tensor (base, tuned, change), R rows, K entries of the leading dimension.
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
from moe_atlas.weights.comparison import TensorChange, TensorComparison
from moe_atlas.weights.ledger import WeightsLedger

ELEMENTS = 1 << 23  # elements of a tensor in memory at a time
NAMED = 8  # tensors that a row names, worst first
FINDINGS = ("nonfinite", "zeroed", "replaced", "missing", "added", "reshaped", "changed")
"""Findings about a tensor that is not identical, worst first; each tensor has one finding."""
MOVED = 0.5  # a change beyond this share of the base's norm replaces a tensor; tunes change a few hundredths
ROW = 8  # least length of a row that does not become zero by chance
SCALED = 8.0  # largest factor by which two calibrations of activation scales may differ

Finding = tuple[str, TensorChange | None]


def compare_unreplayed(sides: Sequence[Side], ledger: WeightsLedger, group: Group) -> list[dict[str, Any]]:
    """Compare the skipped tensors; return one row per part of the checkpoint.

    Tensors of both checkpoints are entered in the ledger, as class `other`.

    Raises:
        InputRefused: E_NONFINITE if a tensor of both checkpoints is not finite in the base.
    """
    parts = {skipped.name: skipped.part for side in sides for skipped in side.spec.skipped}
    found = group.spread(lambda name: _examine(sides, name, parts[name]), sorted(parts))
    for _, change in found:
        if change is not None:
            ledger.enter(change)
    if len(sides) == 1:
        return []
    findings = dict(zip(sorted(parts), (finding for finding, _ in found), strict=True))
    held = [{skipped.name for skipped in side.spec.skipped} for side in sides]
    return [
        _row(part, {name: findings[name] for name in findings if parts[name] == part}, held)
        for part in sorted(set(parts.values()))
    ]


def values_alone(side: Side, known: Collection[str], group: Group) -> dict[str, str | None]:
    """Return value digests of skipped tensors that the ledger lacks because they have no counterpart."""
    names = [skipped.name for skipped in side.spec.skipped if skipped.name not in known]

    def values(name: str) -> str | None:
        shape = tuple(side.checkpoint.logical[name].shape)
        return _compare_in_pieces([side], name, shape).change(name, "other", None).values[0]

    return dict(zip(names, group.spread(values, names), strict=True))


def nothing_differs(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether every skipped tensor holds the same values in both checkpoints."""
    return not any(row[finding] for row in rows for finding in FINDINGS)


def _row(part: str, findings: Mapping[str, str], held: Sequence[set[str]]) -> dict[str, Any]:
    """Return the counts of tensors and findings of a part, with the names of the worst tensors."""
    counts = Counter(findings.values())
    worst = [name for finding in FINDINGS[:-1] for name in findings if findings[name] == finding]
    return {
        "part": part,
        "tensors": {
            side: len(names & findings.keys()) for side, names in zip(("base", "tuned"), held, strict=True)
        },
        "identical": counts["identical"],
        **{finding: counts[finding] for finding in FINDINGS},
        "named": [{"tensor": name, "is": findings[name]} for name in worst[:NAMED]],
    }


def _examine(sides: Sequence[Side], name: str, part: str) -> Finding:
    """Return the finding about one tensor, and its row of the ledger if it has a counterpart of equal shape."""
    stored = [side.checkpoint.logical.get(name) for side in sides]
    shapes = [None if tensor is None else tuple(tensor.shape) for tensor in stored]
    if len(sides) == 1 or (None not in shapes and len(set(shapes)) == 1):
        return _compare(sides, name, part, shapes[0] or ())
    lone = "missing" if shapes[1] is None else "added" if shapes[0] is None else "reshaped"
    finite = shapes[1] is None or 0 in shapes[1] or _finite(sides[1], name, shapes[1])
    return (lone if finite else "nonfinite"), None


def _compare(sides: Sequence[Side], name: str, part: str, shape: tuple[int, ...]) -> Finding:
    if 0 in shape:
        return "identical", None
    comparison = _compare_in_pieces(sides, name, shape)
    change = comparison.change(name, "other", None)
    if change.identical is not False:
        return "identical", change
    if change.nonfinite[1]:
        return "nonfinite", change
    squares_NR = np.stack([comparison.row_squares(number) for number in range(3)])
    return _judge(squares_NR, shape, part), change


def _judge(squares_NR: NDArray[np.float64], shape: tuple[int, ...], part: str) -> str:
    """Judge a changed tensor, separately for each entry of a leading dimension of experts or layers.

    A tune changes a tensor by a few per cent of its norm and makes no row zero. A tensor that lost its values or its
    direction was not tuned.
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
    """Sum the squares of rows by entry of the leading dimension, or over the tensor below three dimensions."""
    squares_NK: NDArray[np.float64] = squares_NR.reshape(3, shape[0] if len(shape) > 2 else 1, -1).sum(2)
    return squares_NK


def _finite(side: Side, name: str, shape: tuple[int, ...]) -> bool:
    return not _compare_in_pieces([side], name, shape).change(name, "other", None).nonfinite[0]


def _compare_in_pieces(sides: Sequence[Side], name: str, shape: tuple[int, ...]) -> TensorComparison:
    """Read and compare a tensor of one or both checkpoints in bounded pieces."""
    comparison = TensorComparison(shape, narrowing(sides, [name] * len(sides)))
    decoded = any(name in side.checkpoint.encoded or name in side.checkpoint.derived for side in sides)
    for index, rows in _pieces(shape, decoded=decoded):
        tensors = [side.reader.read(name, index, rows) for side in sides]
        comparison.add(tensors[0], tensors[1] if len(tensors) == 2 else None)
    return comparison


def _pieces(shape: tuple[int, ...], *, decoded: bool) -> Iterator[tuple[int | None, range | None]]:
    """Yield the (entry, rows) of the leading dimension to read at a time; quantised stacks are read by entry."""
    if 0 in shape:
        return
    if decoded and len(shape) > 2:
        yield from ((index, None) for index in range(shape[0]))
    elif not shape:
        yield None, None
    else:
        step = max(1, ELEMENTS * shape[0] // int(np.prod(shape)))
        yield from ((None, range(first, min(first + step, shape[0]))) for first in range(0, shape[0], step))
