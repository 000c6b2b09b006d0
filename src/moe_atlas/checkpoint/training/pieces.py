"""Tensors that are cut into rectangular pieces: whether pieces fit together, and where the bytes of a range lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_PIECES = 16384
"""The most pieces of one tensor."""
Dimension = tuple[int, int, int]
"""Extent of the whole tensor, offset and size of the piece in it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangular part of a tensor; its elements lie in a file without gaps, in row-major order.

    Attributes:
        file: the file's name inside the checkpoint.
        begin: offset of its first byte in the file.
        offsets: its first index in each dimension of the tensor.
        sizes: its extent in each dimension.
    """

    file: str
    begin: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of its elements."""
        return math.prod(self.sizes)


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of bytes that follow each other in a piece and stand at equal distances in the tensor.

    Attributes:
        position: offset of the first run in the tensor's bytes, in row-major order.
        stored: offset of the first run in the piece's bytes.
        length: bytes of a run.
        count: the number of runs.
        stride: bytes from the begin of a run to the begin of the next run in the tensor.
    """

    position: int
    stored: int
    length: int
    count: int
    stride: int

    def within(self, start: int, stop: int) -> range:
        """Return the indices of the runs that share a byte with the range from `start` to `stop`."""
        first = max(0, (start - self.position - self.length) // self.stride + 1)
        last = min(self.count, -(-(stop - self.position) // self.stride))
        return range(first, max(first, last))


def fault(shape: tuple[int, ...], pieces: Sequence[Piece]) -> str | None:
    """Return why pieces do not cover a tensor exactly once; None if they do. Pieces hold at least one element."""
    for piece in pieces:
        ends = [offset + size for offset, size in zip(piece.offsets, piece.sizes, strict=True)]
        if any(end > extent for end, extent in zip(ends, shape, strict=True)):
            return f"{_box(piece)} reaches beyond the shape {list(shape)}"
    twice = _overlap(shape, pieces)
    if twice is not None:
        return f"{_box(twice[0])} and {_box(twice[1])} overlap"
    covered = sum(piece.elements for piece in pieces)
    if covered != math.prod(shape):
        return f"its pieces hold {covered} of {math.prod(shape)} elements: a piece is missing"
    return None


def _box(piece: Piece) -> str:
    return f"the piece of {list(piece.sizes)} at {list(piece.offsets)} in {piece.file}"


def _overlap(shape: tuple[int, ...], pieces: Sequence[Piece]) -> tuple[Piece, Piece] | None:
    """Sweep along the dimension that is cut most often, and compare the pieces that lie side by side."""
    if len(pieces) < 2:
        return None
    if not shape:
        return pieces[0], pieces[1]
    along = max(range(len(shape)), key=lambda d: len({piece.offsets[d] for piece in pieces}))
    active: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.offsets[along]):
        begin = piece.offsets[along]
        active = [other for other in active if other.offsets[along] + other.sizes[along] > begin]
        for other in active:
            if _meet(piece, other):
                return other, piece
        active.append(piece)
    return None


def _meet(one: Piece, other: Piece) -> bool:
    rows = zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    return all(a < b + m and b < a + n for a, n, b, m in rows)


def runs(
    shape: tuple[int, ...], piece: Piece, itemsize: int, start: int, stop: int
) -> Iterator[tuple[Runs, range]]:
    """Yield the runs of a piece that hold bytes of a tensor from `start` to `stop`, with their indices.

    Args:
        shape: the tensor's shape.
        piece: a piece of it.
        itemsize: bytes of an element.
        start: first byte, in the tensor's row-major order.
        stop: the byte after the last byte.
    """
    if start >= stop:
        return
    for found in _walk(_merged(shape, piece, itemsize), 0, 0, start, stop):
        indices = found.within(start, stop)
        if indices:
            yield found, indices


def _merged(shape: tuple[int, ...], piece: Piece, itemsize: int) -> list[Dimension]:
    """Join each dimension with the one after it where the piece holds that one whole; count the last in bytes."""
    merged = [(itemsize, 0, itemsize)]
    for extent, offset, size in zip(
        reversed(shape), reversed(piece.offsets), reversed(piece.sizes), strict=True
    ):
        inner, _, held = merged[0]
        if held == inner:
            merged[0] = (extent * inner, offset * inner, size * inner)
        else:
            merged.insert(0, (extent, offset, size))
    return merged


def _walk(dims: list[Dimension], position: int, stored: int, start: int, stop: int) -> Iterator[Runs]:
    _, offset, size = dims[0]
    if len(dims) == 1:
        yield Runs(position + offset, stored, size, 1, size)
        return
    if len(dims) == 2:
        extent, inner, length = dims[1]
        yield Runs(position + offset * extent + inner, stored, length, size, extent)
        return
    whole = math.prod(extent for extent, _, _ in dims[1:])
    held = math.prod(size for _, _, size in dims[1:])
    first = max(0, (start - position) // whole - offset)
    last = min(size, -(-(stop - position) // whole) - offset)
    for index in range(first, last):
        yield from _walk(dims[1:], position + (offset + index) * whole, stored + index * held, start, stop)
