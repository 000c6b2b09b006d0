"""The weights ledger: for every tensor of the pair, did it change, by how much, and is it whole?

It catches what behaviour shows late or never: a tune that did not land, a router that was meant to be frozen,
a converter that dropped experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_atlas.errors import InputRefused
from moe_atlas.probes.policy import TENSOR_CLASSES

CHUNK = 60 << 9  # elements compared at a time: they stay in the cache, and torch takes one thread for so few
RUN = 512  # squares added up in float32
SAFE = (1e-30, 1e37)  # sums of squares that float32 neither loses nor overflows


@dataclass(frozen=True)
class TensorChange:
    """One row of the ledger.

    Attributes:
        identical: byte-identical, in the same dtype.
        base_square, change_square: ‖W0‖² and ‖W1−W0‖² in float64; `change_square` is 0 for a lone checkpoint.
        zeros, nonfinite: counts of exact zeros and of NaN or infinities, (base, tuned).
        elements: number of elements.
    """

    name: str
    kind: str
    layer: int | None
    identical: bool | None
    base_square: float
    change_square: float
    zeros: tuple[int, int | None]
    nonfinite: tuple[int, int | None]
    elements: int

    @property
    def relative_change(self) -> float | None:
        """‖W1−W0‖ / ‖W0‖ (Frobenius); None when the base norm is 0 or something is not finite."""
        return _relative(self.base_square, self.change_square)

    def row(self) -> dict[str, Any]:
        """The row as the receipt prints it."""
        return {
            "name": self.name,
            "class": self.kind,
            "layer": self.layer,
            "identical": self.identical,
            "relative_change": None if self.identical is None else self.relative_change,
            "zeros": {"base": self.zeros[0], "tuned": self.zeros[1]},
            "nonfinite": {"base": self.nonfinite[0], "tuned": self.nonfinite[1]},
            "elements": self.elements,
        }


@dataclass
class WeightsLedger:
    """Rows in reading order.

    Attributes:
        rows: one per logical tensor, experts and router rows matched when they were relabelled.
        as_stored: the same-index rows of what was relabelled, beside the others.
        changed_layers: layers (None: outside the layers) with a row that is not byte-identical.
    """

    rows: list[TensorChange] = field(default_factory=list)
    as_stored: list[TensorChange] = field(default_factory=list)
    changed_layers: set[int | None] = field(default_factory=set)

    def add(
        self,
        name: str,
        kind: str,
        layer: int | None,
        base: Tensor,
        tuned: Tensor | None,
        *,
        as_stored: bool = False,
    ) -> TensorChange:
        """Compare one tensor of the base with its counterpart and enter the row; errors are those of `enter`."""
        return self.enter(compare(name, kind, layer, base, tuned), as_stored=as_stored)

    def enter(self, change: TensorChange, *, as_stored: bool = False) -> TensorChange:
        """Enter a row.

        Raises:
            InputRefused: E_NONFINITE when the base holds a NaN or an infinity; in the tuned checkpoint that is a
                FAIL, in the base there is nothing left to compare with.
        """
        if change.nonfinite[0]:
            raise InputRefused(
                "E_NONFINITE",
                f"base checkpoint, tensor {change.name!r}",
                f"expected finite values, found {change.nonfinite[0]} NaN or infinite of {change.elements}",
                "a base with non-finite weights cannot anchor an audit; audit against an intact one",
            )
        (self.as_stored if as_stored else self.rows).append(change)
        if not change.identical and not as_stored:
            self.changed_layers.add(change.layer)
        return change

    def facts(self) -> dict[str, Any]:
        """The receipt's `weights` block."""
        facts: dict[str, Any] = {"classes": summarise(self.rows), "tensors": [row.row() for row in self.rows]}
        if self.as_stored:
            facts["as_stored"] = {
                "classes": summarise(self.as_stored),
                "tensors": [row.row() for row in self.as_stored],
            }
        return facts

    def parameter_distance(self) -> float | None:
        """‖θ1−θ0‖ / ‖θ0‖ over all tensors: the undifferentiated control."""
        return _relative(sum(r.base_square for r in self.rows), sum(r.change_square for r in self.rows))


def compare(name: str, kind: str, layer: int | None, base: Tensor, tuned: Tensor | None) -> TensorChange:
    """One ledger row, reading both tensors in bounded pieces."""
    base = base.reshape(-1)
    flat = None if tuned is None else tuned.reshape(-1)
    identical = None if flat is None else same_bytes(base, flat)
    changed = flat if identical is False else None
    squares, change = _squares(base, changed)
    zeros0, zeros1 = _zeros(base), None
    nonfinite0, nonfinite1 = _nonfinite(base, squares[0]), None
    if changed is not None:
        zeros1, nonfinite1 = _zeros(changed), _nonfinite(changed, squares[1])
    elif identical:
        zeros1, nonfinite1 = zeros0, nonfinite0
    return TensorChange(
        name,
        kind,
        layer,
        identical,
        squares[0],
        change,
        (zeros0, zeros1),
        (nonfinite0, nonfinite1),
        len(base),
    )


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bytes in the same dtype and shape (NaN equals NaN, 0 differs from −0)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # numpy compares integers many times faster than torch compares bytes
    return np.array_equal(_integers(a), _integers(b))


def summarise(rows: list[TensorChange]) -> dict[str, Any]:
    """Per class: tensors, how many are identical, relative Frobenius change, zero and non-finite counts."""
    return {kind: _class_row([r for r in rows if r.kind == kind]) for kind in TENSOR_CLASSES}


def _class_row(rows: list[TensorChange]) -> dict[str, Any]:
    compared = [row for row in rows if row.identical is not None]
    tuned = bool(compared)
    identical = sum(bool(row.identical) for row in compared)
    square0, square1 = sum(r.base_square for r in rows), sum(r.change_square for r in compared)
    return {
        "tensors": len(rows),
        "identical": identical if tuned else None,
        "changed": len(compared) - identical if tuned else None,
        "relative_change": _relative(square0, square1) if tuned else None,
        "zeros": _both(rows, "zeros"),
        "nonfinite": _both(rows, "nonfinite"),
        "all_zero_tensors": {
            "base": sum(r.zeros[0] == r.elements for r in rows),
            "tuned": sum(r.zeros[1] == r.elements for r in rows) if tuned else None,
        },
    }


def _both(rows: list[TensorChange], key: str) -> dict[str, int | None]:
    pairs = [getattr(row, key) for row in rows]
    tuned = [pair[1] for pair in pairs if pair[1] is not None]
    return {"base": sum(pair[0] for pair in pairs), "tuned": sum(tuned) if tuned else None}


def _squares(base: Tensor, tuned: Tensor | None) -> tuple[tuple[float, float], float]:
    """((‖W0‖², ‖W1‖²), ‖W1−W0‖²) of flat tensors; 0 for what there is not.

    Short runs are added up in float32, those in float64; all in float64 where float32 does not hold the values
    exactly, or would lose or overflow a square.
    """
    present = [tensor for tensor in (base, tuned) if tensor is not None]
    if all(t.dtype.is_floating_point and t.dtype.itemsize <= 4 for t in present):
        sums = _sums(base, tuned, torch.float32)
        if all(SAFE[0] < total < SAFE[1] for total in sums[: 1 if tuned is None else 3]):
            return (sums[0], sums[1]), sums[2]
    sums = _sums(base, tuned, torch.float64)
    return (sums[0], sums[1]), sums[2]


def _sums(base: Tensor, tuned: Tensor | None, dtype: torch.dtype) -> list[float]:
    """‖W0‖², ‖W1‖² and ‖W1−W0‖², their runs added up in `dtype`, in one pass over pieces that stay in the cache."""
    # In one place: small survivors between freed pieces would keep all of these from the system.
    norms_3R = torch.zeros(3, -(-len(base) // RUN), dtype=dtype)
    for begin in range(0, len(base), CHUNK):
        runs = slice(begin // RUN, (begin + CHUNK) // RUN)
        values0 = base[begin : begin + CHUNK].to(dtype)
        _norms_of_runs(values0, norms_3R[0, runs])
        if tuned is not None:
            values1 = tuned[begin : begin + CHUNK].to(dtype)
            _norms_of_runs(values1, norms_3R[1, runs])
            _norms_of_runs(values1 - values0, norms_3R[2, runs])
    return norms_3R.double().square().sum(1).tolist()


def _norms_of_runs(values: Tensor, norms_R: Tensor) -> None:
    """Write the norms of runs of `RUN` values, the last of which may be shorter."""
    whole = len(values) // RUN
    torch.linalg.vector_norm(values[: whole * RUN].view(-1, RUN), dim=1, out=norms_R[:whole])
    if whole < len(norms_R):
        norms_R[whole] = torch.linalg.vector_norm(values[whole * RUN :])


def _zeros(flat: Tensor) -> int:
    """Exact zeros of either sign."""
    if not flat.dtype.is_floating_point or "fnuz" in str(flat.dtype):
        return int((flat.double() == 0).sum())
    bits = _integers(flat, flat.dtype.itemsize)
    unsigned = np.iinfo(bits.dtype).max
    return sum(
        len(piece) - int(np.count_nonzero(piece & unsigned))
        for piece in np.split(bits, range(CHUNK, len(bits), CHUNK))
    )


def _nonfinite(flat: Tensor, square: float) -> int:
    """NaN and infinities; a finite sum of squares says that there are none."""
    if math.isfinite(square):
        return 0
    return sum(int((~torch.isfinite(piece.double())).sum()) for piece in flat.split(CHUNK))


def _integers(tensor: Tensor, size: int = 8) -> NDArray[Any]:
    """The bytes of a tensor as integers of `size` bytes, smaller ones where they do not divide it."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy(force=True)
    width = next(width for width in (size, 4, 2, 1) if width <= size and raw.nbytes % width == 0)
    return raw.view(np.dtype(f"i{width}"))


def _relative(base_square: float, change_square: float) -> float | None:
    if base_square <= 0.0 or not math.isfinite(base_square) or not math.isfinite(change_square):
        return None
    return math.sqrt(change_square / base_square)
