"""Compare a tensor of the base with its counterpart in one pass: identity, relative change, zeros, non-finite values.

Legend: R rows, C elements of a row, K runs of a row, V elements of a run, N the squared tensor (base, tuned, change).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_atlas.weights.values import PIECE, ValueHash, integers, is_canonical, same_bytes, same_values

RUN = 512  # squares summed in float32
LOST = 1e-30  # in smaller sums, float32 may have lost a square
AS_STORED = "as stored"
"""Stands for a digest of values that equals the sha256 of the stored bytes, which the reader computes anyway."""


@dataclass(frozen=True)
class Narrowing:
    """Rounding of the base's values by the tuned checkpoint's format, which cannot hold all of them.

    Attributes:
        keep: function that rounds the base's values to the format by plain rounding.
        certain: whether every writer rounds this way, so that any other values prove a change.
    """

    keep: Callable[[Tensor], Tensor]
    certain: bool


@dataclass(frozen=True)
class TensorChange:
    """One row of the weights ledger.

    Attributes:
        name: canonical name of the tensor.
        kind: ledger class.
        layer: layer index; None outside the layers.
        identical: whether both tensors hold the same values, whatever dtype and layout; None without a counterpart.
        base_square, change_square: ‖W0‖² and ‖W1−W0‖² in float64; `change_square` is 0 without a counterpart. Both
            are 0 for numbers of things (ids), whose distance means nothing.
        zeros, nonfinite: counts of exact zeros, and of NaN and infinities, (base, tuned).
        elements: number of elements.
        expert: the base's index of the routed expert that owns the tensor; None for other tensors.
        recast: whether the values are identical and the bytes differ: another dtype, or zeros of the other sign.
        rounded: whether rounding to the tuned checkpoint's format explains the whole change; None if undecidable.
        values: digests of the values, (base, tuned); `AS_STORED` if the stored bytes have the same digest; None for
            tuned values that equal the base's.
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
    expert: int | None = None
    recast: bool = False
    rounded: bool | None = False
    values: tuple[str | None, str | None] = (None, None)

    @property
    def moved(self) -> bool:
        """Whether the tensor certainly changed by more than the rounding of a storage format."""
        return self.identical is False and self.rounded is False

    @property
    def relative_change(self) -> float | None:
        """‖W1−W0‖ / ‖W0‖ (Frobenius); None if the base norm is 0, or a norm is not finite."""
        return relative(self.base_square, self.change_square)

    def row(self) -> dict[str, Any]:
        """Return the row as JSON values of the receipt."""
        return {
            "name": self.name,
            "class": self.kind,
            "layer": self.layer,
            "expert": self.expert,
            "identical": self.identical,
            "recast": None if self.identical is None else self.recast,
            "rounded": None if self.identical is None else self.rounded,
            "relative_change": None if self.identical is None else self.relative_change,
            "zeros": {"base": self.zeros[0], "tuned": self.zeros[1]},
            "nonfinite": {"base": self.nonfinite[0], "tuned": self.nonfinite[1]},
            "elements": self.elements,
        }


class TensorComparison:
    """A running comparison of a tensor of the base and its counterpart, if any, whole or in consecutive parts.

    The result does not depend on the division into parts.

    Args:
        shape: shape of the whole tensor.
        narrowing: rounding by the tuned checkpoint's format; None if the format holds all of the base's values.
        lone_rows: whether one checkpoint has more rows; `add_lone` adds them after the rows that both have.
        numbers: whether the elements are numbers of things (ids): two of them are equal or not, and no distance counts.
    """

    def __init__(
        self,
        shape: Sequence[int],
        narrowing: Narrowing | None = None,
        *,
        lone_rows: bool = False,
        numbers: bool = False,
    ) -> None:
        self._narrowing = narrowing
        self._lone_rows = lone_rows
        self._rounded = narrowing is not None
        self._length = max(1, shape[-1]) if shape else 1
        self._width = _divisor(self._length, PIECE)
        self._run = _divisor(self._width, RUN)
        self._elements = math.prod(shape)
        self._squares_NR = np.zeros((3, self._elements // self._width))
        self._seen = 0
        self._identical: bool | None = None
        self._recast = False
        self._numbers = numbers
        self._values = [ValueHash()]  # a second hash starts at the first difference
        self._as_stored = [False, False]
        self._zeros, self._nonfinite = [0, 0], [0, 0]

    def add(self, base: Tensor, tuned: Tensor | None, *, stored: tuple[bool, bool] = (False, False)) -> None:
        """Add the next rows (entries of all dimensions but the last) of both tensors.

        Args:
            base: rows of the base's tensor.
            tuned: rows of the counterpart; None without a counterpart.
            stored: whether the rows are the bytes of a whole stored tensor, (base, tuned).
        """
        same = tuned is not None and same_values(base, tuned)
        if tuned is not None:
            self._recast |= same and not same_bytes(base, tuned)
            if not same and self._identical is not False:
                self._values.append(self._values[0].copy())  # all earlier rows hold the base's values
            self._identical = same and self._identical is not False
            if self._narrowing is not None and self._rounded:
                self._rounded = same_values(self._narrowing.keep(base), tuned)
        parts = [part.reshape(-1, self._width) for part in (base, tuned) if part is not None]
        here = slice(self._seen, self._seen + len(parts[0]))
        self._seen = here.stop
        with np.errstate(all="ignore"):  # `_nonfinite` counts non-finite values
            squares_NR, zeros, minus = self._sums(parts[:1] if same else parts)
        self._squares_NR[: len(squares_NR), here] = squares_NR
        if same:
            self._squares_NR[1, here] = squares_NR[0]
            zeros *= 2
        for number, part_RC in enumerate(parts):
            self._zeros[number] += zeros[number]
            nonfinite = _nonfinite(part_RC, self._squares_NR[number, here])
            self._nonfinite[number] += nonfinite
            if number < len(self._values):
                hashed = 0 if same else number  # equal values have one digest
                clean = not nonfinite and not minus[hashed]
                self._digest(number, parts[hashed], stored=stored[number], clean=clean)

    def add_lone(self, number: int, part: Tensor) -> None:
        """Add rows that only one checkpoint has, after all rows that both have.

        The rows count in the digest of the checkpoint's values and among its non-finite values, not in the comparison.

        Args:
            number: 0 for the base, 1 for the tuned checkpoint.
            part: the rows.
        """
        if len(self._values) == 1:  # all earlier rows hold the base's values
            self._values.append(self._values[0].copy())
        self._values[number].add(part)
        self._nonfinite[number] += int((~torch.isfinite(part)).sum())

    def _digest(self, number: int, part_RC: Tensor, *, stored: bool, clean: bool) -> None:
        """Add rows to the digest of a checkpoint's values; `clean`: the rows hold neither −0 nor NaN."""
        whole = len(part_RC) == self._squares_NR.shape[1] and not self._lone_rows
        self._as_stored[number] = stored and clean and whole and is_canonical(part_RC)
        if not self._as_stored[number]:
            self._values[number].add(part_RC, whole=whole, clean=clean)

    def change(self, name: str, kind: str, layer: int | None, expert: int | None = None) -> TensorChange:
        """Return the row of the ledger; call `add` for all rows first."""
        assert self._seen == self._squares_NR.shape[1], f"{name}: {self._seen} rows"
        lone = self.lone
        (zeros0, zeros1), (nonfinite0, nonfinite1) = self._zeros, self._nonfinite
        values = [
            AS_STORED if own else found.digest()
            for own, found in zip(self._as_stored, self._values, strict=False)
        ]
        return TensorChange(
            name,
            kind,
            layer,
            self._identical,
            0.0 if self._numbers else float(self._squares_NR[0].sum()),
            0.0 if self._numbers else float(self._squares_NR[2].sum()),
            (zeros0, None if lone else zeros1),
            (nonfinite0, None if lone else nonfinite1),
            self._elements,
            expert,
            bool(self._identical) and self._recast,
            self._identical is False and self._only_rounded,
            (values[0], values[1] if len(values) == 2 else None),
        )

    @property
    def _only_rounded(self) -> bool | None:
        decidable = self._rounded or self._narrowing is None or self._narrowing.certain
        return self._rounded if decidable else None

    @property
    def lone(self) -> bool:
        """Whether the tensor has no counterpart."""
        return self._identical is None

    def row_squares(self, number: int, rows: range | None = None) -> NDArray[np.float64]:
        """Return the sum of squares of every row (entry of all dimensions but the last), float64 [rows].

        Args:
            number: 0 for the base, 1 for the tuned checkpoint, 2 for their difference.
            rows: the rows to return; all rows by default.
        """
        runs = self._length // self._width
        here = slice(None) if rows is None else slice(rows.start * runs, rows.stop * runs)
        squares: NDArray[np.float64] = self._squares_NR[number, here].reshape(-1, runs).sum(1)
        return squares

    def zeroed(self, number: int) -> bool:
        """Return whether the tensor of checkpoint `number` (0 base, 1 tuned) is zero throughout."""
        return self._zeros[number] == self._elements

    def _sums(self, parts: list[Tensor]) -> tuple[NDArray[np.float64], list[int], list[bool]]:
        """Return sums of squares by row, counts of zeros per tensor, and whether a tensor holds −0.

        The sum of a short run is float32, the sum of runs float64. All sums are float64 if float32 cannot hold the
        values exactly, or would lose or overflow a square.
        """
        if not all(part.dtype.is_floating_point and part.dtype.itemsize <= 4 for part in parts):
            return self._added_up(parts, torch.float64)
        squares_NR, zeros, minus = self._added_up(parts, torch.float32)
        unsafe_NR = ~((squares_NR > LOST) & (squares_NR < np.inf))
        again_R = unsafe_NR.any(0)
        if again_R.any():
            exact_NR, _, _ = self._added_up(
                [part[torch.from_numpy(again_R)] for part in parts], torch.float64
            )
            squares_NR[unsafe_NR] = exact_NR[unsafe_NR[:, again_R]]
        return squares_NR, zeros, minus

    def _added_up(
        self, parts: list[Tensor], dtype: torch.dtype
    ) -> tuple[NDArray[np.float64], list[int], list[bool]]:
        runs = self._width // self._run
        shape = (3 if len(parts) == 2 else 1, len(parts[0]), runs)
        squares_NRK = np.empty(shape, np.float32 if dtype is torch.float32 else np.float64)
        counts = [_Zeros(part) for part in parts]
        for begin, values_NRC in _pieces(parts, max(1, PIECE // self._width), dtype):
            end = begin + values_NRC.shape[1]
            values_NRKV = values_NRC.reshape(len(values_NRC), -1, runs, self._run)
            # One dot product per run.
            squares_NRK[:, begin:end] = np.matmul(values_NRKV[..., None, :], values_NRKV[..., None])[
                ..., 0, 0
            ]
            for count in counts:
                count.add(begin, end)
        squares_NR = squares_NRK.sum(-1, dtype=np.float64)
        return squares_NR, [count.zeros for count in counts], [count.minus for count in counts]


def relative(base_square: float, change_square: float) -> float | None:
    """Return √(change/base); None if the base norm is 0 or a value is not finite."""
    if base_square <= 0.0 or not math.isfinite(base_square) or not math.isfinite(change_square):
        return None
    return math.sqrt(change_square / base_square)


def combined_change(rows: Sequence[TensorChange]) -> float | None:
    """Return √(Σ change / Σ base) of several tensors; 0 if none changed, even for a zero base or no tensors."""
    change = sum(row.change_square for row in rows)
    return 0.0 if change == 0.0 else relative(sum(row.base_square for row in rows), change)


def row_changes(base_RC: Tensor, tuned_RC: Tensor) -> list[float | None]:
    """Return ‖w1−w0‖ / ‖w0‖ of every row of two small matrices, with the conventions of `combined_change`."""
    base_RC, tuned_RC = base_RC.double(), tuned_RC.double()
    squares = base_RC.square().sum(1).tolist(), (tuned_RC - base_RC).square().sum(1).tolist()
    return [0.0 if change == 0.0 else relative(base, change) for base, change in zip(*squares, strict=True)]


def _pieces(parts: list[Tensor], step: int, dtype: torch.dtype) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the first row number and the values [N, R, C] of both tensors and their difference, piece by piece."""
    buffer_NRC = torch.empty(
        3 if len(parts) == 2 else 1, min(step, len(parts[0])), parts[0].shape[1], dtype=dtype
    )
    values_NRC = buffer_NRC.numpy()
    for number, pieces in enumerate(zip(*(part.split(step) for part in parts), strict=True)):
        rows = len(pieces[0])
        for n, piece_RC in enumerate(pieces):
            buffer_NRC[n, :rows].copy_(piece_RC)
        if len(pieces) == 2:
            np.subtract(values_NRC[1, :rows], values_NRC[0, :rows], out=values_NRC[2, :rows])
        yield number * step, values_NRC[:, :rows]


class _Zeros:
    """A running count of the exact zeros, of either sign, in the rows of a tensor."""

    def __init__(self, part_RC: Tensor) -> None:
        self._bits_RC = integers(part_RC, part_RC.dtype.itemsize)
        signed = part_RC.dtype.is_floating_point and "fnuz" not in str(part_RC.dtype)
        self._minus = np.iinfo(self._bits_RC.dtype).min if signed else None
        self.zeros = 0
        self.minus = False

    def add(self, begin: int, end: int) -> None:
        bits = self._bits_RC[begin:end].reshape(-1)
        self.zeros += len(bits) - int(np.count_nonzero(bits))
        if self._minus is not None and np.minimum.reduce(bits, initial=0) == self._minus:
            self.zeros += int(np.count_nonzero(bits == self._minus))
            self.minus = True


def _nonfinite(part_RC: Tensor, squares_R: NDArray[np.float64]) -> int:
    """Count NaN and infinities; a row with a finite sum of squares has none."""
    bad_R = ~np.isfinite(squares_R)
    if not bad_R.any():
        return 0
    return sum(int((~torch.isfinite(row_C.double())).sum()) for row_C in part_RC[torch.from_numpy(bad_R)])


@cache
def _divisor(count: int, limit: int) -> int:
    """Return the largest divisor of `count` that is at most `limit`."""
    return next(divisor for divisor in range(min(count, limit), 0, -1) if count % divisor == 0)
