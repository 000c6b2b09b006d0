"""One look at a tensor of the pair and its counterpart: did it change, by how much, and is it whole?

Legend: R rows, C elements of a row, K runs of a row, V elements of a run, N what is squared (base, tuned, change).
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

RUN = 512  # squares added up in float32
LOST = 1e-30  # sums of squares up to which float32 may have lost some
AS_STORED = (
    "as stored"  # a digest of values that is the sha256 of a stored tensor's own bytes, which is taken anyway
)


@dataclass(frozen=True)
class Narrowing:
    """What the tuned checkpoint's format makes of the base's values, where it cannot hold all of them.

    Attributes:
        keep: gives the base's values as the format would keep them, by plain rounding.
        certain: whether nobody rounds otherwise, so that values other than these were changed.
    """

    keep: Callable[[Tensor], Tensor]
    certain: bool


@dataclass(frozen=True)
class TensorChange:
    """One row of the ledger.

    Attributes:
        identical: the same values, whatever the dtype and layout; None for a lone checkpoint.
        base_square, change_square: ‖W0‖² and ‖W1−W0‖² in float64; `change_square` is 0 for a lone checkpoint. Both
            are 0 where the elements number things: how far apart two of them are says nothing.
        zeros, nonfinite: counts of exact zeros and of NaN or infinities, (base, tuned).
        elements: number of elements.
        expert: the base's index of the routed expert that it belongs to, if any.
        recast: the same values in other bytes: another dtype, or zeros of the other sign.
        rounded: whether the change is no more than what the tuned checkpoint's format makes of the base's values; None
            where that cannot be told.
        values: digests of the values, (base, tuned); `AS_STORED` for those of a whole stored tensor that is written as
            a digest would write it; None for the tuned where they are the base's.
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
        """Whether it changed by more than another format's rounding, as far as that can be told."""
        return self.identical is False and self.rounded is False

    @property
    def relative_change(self) -> float | None:
        """‖W1−W0‖ / ‖W0‖ (Frobenius); None when the base norm is 0, or something is not finite."""
        return relative(self.base_square, self.change_square)

    def row(self) -> dict[str, Any]:
        """The row as the receipt prints it."""
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


class Comparison:
    """A tensor of the base and its counterpart, if any, taken in once, whole or in consecutive parts.

    What it finds does not depend on the parts.

    Args:
        shape: of the whole tensor.
        narrowing: where the tuned checkpoint's format may lose some of the base's values.
        lone_rows: whether one checkpoint has more rows, which `add_lone` takes in behind the others.
        numbers: whether the elements number things, so that they are equal or not, and never near.
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
        self._values = [ValueHash()]  # a second one from where the values part
        self._as_stored = [False, False]
        self._zeros, self._nonfinite = [0, 0], [0, 0]

    def add(self, base: Tensor, tuned: Tensor | None, *, stored: tuple[bool, bool] = (False, False)) -> None:
        """Take in the next rows (entries of all dimensions but the last) of both.

        Args:
            base: the base's.
            tuned: the tuned checkpoint's.
            stored: whether these are the bytes of a whole stored tensor, (base, tuned).
        """
        same = tuned is not None and same_values(base, tuned)
        if tuned is not None:
            self._recast |= same and not same_bytes(base, tuned)
            if not same and self._identical is not False:
                self._values.append(self._values[0].copy())  # up to here it held the base's
            self._identical = same and self._identical is not False
            if self._narrowing is not None and self._rounded:
                self._rounded = same_values(self._narrowing.keep(base), tuned)
        parts = [part.reshape(-1, self._width) for part in (base, tuned) if part is not None]
        here = slice(self._seen, self._seen + len(parts[0]))
        self._seen = here.stop
        with np.errstate(all="ignore"):  # what is not finite is counted
            squares_NR, zeros, minus = self._look(parts[:1] if same else parts)
        self._squares_NR[: len(squares_NR), here] = squares_NR
        if same:
            self._squares_NR[1, here] = squares_NR[0]
            zeros *= 2
        for side, part_RC in enumerate(parts):
            self._zeros[side] += zeros[side]
            nonfinite = _nonfinite(part_RC, self._squares_NR[side, here])
            self._nonfinite[side] += nonfinite
            if side < len(self._values):
                said = 0 if same else side  # equal values have one digest
                self._digest(side, parts[said], stored=stored[side], clean=not nonfinite and not minus[said])

    def add_lone(self, side: int, part: Tensor) -> None:
        """Take in rows that one checkpoint alone has, once all others were taken in.

        They are in the digest of its values and among what is not finite. What compares leaves them out.

        Args:
            side: 0 for the base, 1 for the tuned checkpoint.
            part: the rows.
        """
        if len(self._values) == 1:  # up to here both hold the same values
            self._values.append(self._values[0].copy())
        self._values[side].add(part)
        self._nonfinite[side] += int((~torch.isfinite(part)).sum())

    def _digest(self, side: int, part_RC: Tensor, *, stored: bool, clean: bool) -> None:
        """Take in some rows for the digest of the values; `clean`: there is neither a −0 nor a NaN among them."""
        whole = len(part_RC) == self._squares_NR.shape[1] and not self._lone_rows
        self._as_stored[side] = stored and clean and whole and is_canonical(part_RC)
        if not self._as_stored[side]:
            self._values[side].add(part_RC, whole=whole, clean=clean)

    def change(self, name: str, kind: str, layer: int | None, expert: int | None = None) -> TensorChange:
        """The row of the ledger, once everything was taken in."""
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
        told = self._rounded or self._narrowing is None or self._narrowing.certain
        return self._rounded if told else None

    @property
    def lone(self) -> bool:
        """Whether there was no counterpart."""
        return self._identical is None

    def squares_of_rows(self, side: int, rows: range | None = None) -> NDArray[np.float64]:
        """Sums of the squares of every row (entry of all dimensions but the last), float64 [rows].

        Args:
            side: 0 for the base, 1 for the tuned checkpoint, 2 for their difference.
            rows: which rows, all by default.
        """
        runs = self._length // self._width
        here = slice(None) if rows is None else slice(rows.start * runs, rows.stop * runs)
        squares: NDArray[np.float64] = self._squares_NR[side, here].reshape(-1, runs).sum(1)
        return squares

    def zeroed(self, side: int) -> bool:
        """Whether one side is zero throughout."""
        return self._zeros[side] == self._elements

    def _look(self, parts: list[Tensor]) -> tuple[NDArray[np.float64], list[int], list[bool]]:
        """Sums of squares by row, counts of zeros of a part of each side, and whether −0 is among them.

        Short runs are added up in float32, those in float64; all in float64 where float32 does not hold the values
        exactly, or would lose or overflow a square.
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
            # One dot product a run.
            squares_NRK[:, begin:end] = np.matmul(values_NRKV[..., None, :], values_NRKV[..., None])[
                ..., 0, 0
            ]
            for count in counts:
                count.add(begin, end)
        squares_NR = squares_NRK.sum(-1, dtype=np.float64)
        return squares_NR, [count.zeros for count in counts], [count.minus for count in counts]


def relative(base_square: float, change_square: float) -> float | None:
    """√(change/base); None when the base norm is 0 or something is not finite."""
    if base_square <= 0.0 or not math.isfinite(base_square) or not math.isfinite(change_square):
        return None
    return math.sqrt(change_square / base_square)


def together(rows: Sequence[TensorChange]) -> float | None:
    """√(Σ change / Σ base) of several tensors; 0 where nothing changed, be the base zero or without tensors."""
    change = sum(row.change_square for row in rows)
    return 0.0 if change == 0.0 else relative(sum(row.base_square for row in rows), change)


def changes_of_rows(base_RC: Tensor, tuned_RC: Tensor) -> list[float | None]:
    """‖w1−w0‖ / ‖w0‖ of every row of two small matrices, as `together`."""
    base_RC, tuned_RC = base_RC.double(), tuned_RC.double()
    squares = base_RC.square().sum(1).tolist(), (tuned_RC - base_RC).square().sum(1).tolist()
    return [0.0 if change == 0.0 else relative(base, change) for base, change in zip(*squares, strict=True)]


def _pieces(parts: list[Tensor], step: int, dtype: torch.dtype) -> Iterator[tuple[int, NDArray[Any]]]:
    """`step` rows at a time: the first one's number, and the values of both sides and their difference, [N, R, C]."""
    buffer_NRC = torch.empty(
        3 if len(parts) == 2 else 1, min(step, len(parts[0])), parts[0].shape[1], dtype=dtype
    )
    values_NRC = buffer_NRC.numpy()
    for number, pieces in enumerate(zip(*(part.split(step) for part in parts), strict=True)):
        rows = len(pieces[0])
        for side, piece_RC in enumerate(pieces):
            buffer_NRC[side, :rows].copy_(piece_RC)
        if len(pieces) == 2:
            np.subtract(values_NRC[1, :rows], values_NRC[0, :rows], out=values_NRC[2, :rows])
        yield number * step, values_NRC[:, :rows]


class _Zeros:
    """Counts the exact zeros, of either sign, of some rows at a time."""

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
    """NaN and infinities; a finite sum of squares says that there are none in a row."""
    bad_R = ~np.isfinite(squares_R)
    if not bad_R.any():
        return 0
    return sum(int((~torch.isfinite(row_C.double())).sum()) for row_C in part_RC[torch.from_numpy(bad_R)])


@cache
def _divisor(count: int, limit: int) -> int:
    """The largest divisor of `count` that is no larger than `limit`."""
    return next(divisor for divisor in range(min(count, limit), 0, -1) if count % divisor == 0)
