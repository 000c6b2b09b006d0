"""Join the pieces that a folder stores into tensors, or refuse the tensor whose pieces do not fit together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moe_atlas.checkpoint.detect import detect
from moe_atlas.checkpoint.files import PIECE_BYTES, FileStat
from moe_atlas.checkpoint.headers.header import DTYPE_BITS, MAX_RANK, StoredTensor
from moe_atlas.checkpoint.headers.refuse import RE_DOWNLOAD, refusal
from moe_atlas.checkpoint.shard import OpenShard
from moe_atlas.checkpoint.training.pieces import MAX_PIECES, Piece, fault

_TOO_LARGE = 1 << 63
COMPLETE = "copy the folder whole: every process of the training wrote a part of it"


@dataclass(frozen=True)
class Cut:
    """A tensor as a training checkpoint describes it.

    Attributes:
        name: its name in the model.
        dtype: the element type as safetensors spells it.
        shape: the shape of the whole tensor.
        pieces: what is stored of it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: list[Piece]


@dataclass(frozen=True)
class Joined:
    """Tensors and their pieces, both by name, in name order."""

    tensors: Mapping[str, StoredTensor]
    pieces: Mapping[str, list[Piece]]


def join(cuts: Iterable[Cut], root: Path, found: Mapping[str, FileStat], label: str) -> Joined:
    """Check that the pieces of every tensor cover it exactly once.

    A piece that is stored twice counts once if both copies hold the same bytes; both are read to see that.

    Raises:
        InputRefused: ``E_COVER`` for a gap, an overlap or copies that differ; ``E_RANK``, ``E_SHAPE``, ``E_DTYPE``.
    """
    tensors, pieces = {}, {}
    for cut in sorted(cuts, key=lambda cut: cut.name):
        nbytes = _nbytes(cut, label)
        distinct = _distinct(cut, root, found, label)
        problem = fault(cut.shape, distinct)
        if problem is not None:
            raise refusal("E_COVER", label, problem, COMPLETE, name=cut.name)
        first = distinct[0] if distinct else Piece(next(iter(found)), 0, (), ())
        pieces[cut.name] = distinct
        tensors[cut.name] = StoredTensor(cut.name, cut.dtype, cut.shape, first.file, first.begin, nbytes)
    if not tensors:
        raise refusal("E_COVER", label, "holds no tensor at all", RE_DOWNLOAD)
    _require_apart(tensors, pieces, label)
    return Joined(MappingProxyType(tensors), MappingProxyType(pieces))


def encoded(config: dict[str, Any], joined: Joined, label: str) -> Mapping[str, Any]:
    """Return the quantised tensors according to the configuration; see `detect`."""
    return detect(config, dict(joined.tensors), label, None)


def _nbytes(cut: Cut, label: str) -> int:
    bits = DTYPE_BITS[cut.dtype]
    if bits % 8:
        problem = f"is stored as {cut.dtype}, which is not read in pieces"
        raise refusal("E_DTYPE", label, problem, name=cut.name)
    if len(cut.shape) > MAX_RANK:
        raise refusal(
            "E_RANK", label, f"has {len(cut.shape)} dimensions, more than {MAX_RANK}", name=cut.name
        )
    if len(cut.pieces) > MAX_PIECES:
        problem = f"is cut into {len(cut.pieces)} pieces, more than {MAX_PIECES}"
        raise refusal("E_COVER", label, problem, name=cut.name)
    if math.prod(extent or 1 for extent in cut.shape) * bits >= _TOO_LARGE:
        raise refusal("E_SHAPE", label, "its shape is too large to address", name=cut.name)
    return math.prod(cut.shape) * bits // 8


def _distinct(cut: Cut, root: Path, found: Mapping[str, FileStat], label: str) -> list[Piece]:
    """Return the pieces that hold elements, each once, in the order of their first elements."""
    kept: dict[tuple[tuple[int, ...], tuple[int, ...]], Piece] = {}
    for piece in cut.pieces:
        if not piece.elements:
            continue
        first = kept.setdefault((piece.offsets, piece.sizes), piece)
        if first is not piece and not _equal(cut, first, piece, root, found):
            problem = f"is stored in {first.file} and again, with other bytes, in {piece.file}"
            raise refusal("E_COVER", label, problem, RE_DOWNLOAD, name=cut.name)
    return sorted(kept.values(), key=lambda piece: piece.offsets)


def _equal(cut: Cut, one: Piece, other: Piece, root: Path, found: Mapping[str, FileStat]) -> bool:
    nbytes = one.elements * DTYPE_BITS[cut.dtype] // 8
    if (one.file, one.begin) == (other.file, other.begin):
        return True
    first, second = bytearray(min(PIECE_BYTES, nbytes)), bytearray(min(PIECE_BYTES, nbytes))
    with OpenShard(root, one.file, found[one.file]) as a, OpenShard(root, other.file, found[other.file]) as b:
        for position in range(0, nbytes, PIECE_BYTES):
            size = min(PIECE_BYTES, nbytes - position)
            a.fill(memoryview(first)[:size], one.begin + position)
            b.fill(memoryview(second)[:size], other.begin + position)
            if first[:size] != second[:size]:
                return False
    return True


def _require_apart(
    tensors: Mapping[str, StoredTensor], pieces: Mapping[str, list[Piece]], label: str
) -> None:
    """Refuse two pieces that share bytes of a file."""
    spans = sorted(
        (piece.file, piece.begin, piece.begin + piece.elements * DTYPE_BITS[tensors[name].dtype] // 8, name)
        for name, stored in pieces.items()
        for piece in stored
    )
    for (file, _, end, name), (other_file, begin, _, other) in zip(spans, spans[1:], strict=False):
        if file == other_file and begin < end:
            problem = f"shares bytes of {file} with '{other}'"
            raise refusal("E_COVER", label, problem, RE_DOWNLOAD, name=name)
