"""A source of tensors that are cut into pieces over the files of a folder; a read joins the pieces it needs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moe_atlas.checkpoint import files, side_files
from moe_atlas.checkpoint.files import PIECE_BYTES, FileStat
from moe_atlas.checkpoint.headers.header import DTYPE_BITS, StoredTensor
from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.shard import OpenShard
from moe_atlas.checkpoint.side_files import SideFile
from moe_atlas.checkpoint.source import Derived, Logical, logical_tensors
from moe_atlas.checkpoint.training.pieces import Piece, Runs, runs

SCRATCH_BYTES = 1 << 20
"""Bytes that are read at a time where the runs of a piece are short."""
LONG_RUN = 64 << 10
"""Bytes of a run that is read directly to its place."""


@dataclass(frozen=True)
class TrainingSource:
    """A training checkpoint as its headers or its metadata describe it; it is a `TensorSource`.

    The tensor's `file` and `begin` are those of its first piece, so that reads in this order go through the files
    from begin to end.

    Attributes:
        root: the folder.
        label: the path as it was given, for messages.
        config: the content of ``config.json``: the folder's own, or else that of the checkpoint given beside it.
        tensors: every tensor by name, in name order.
        pieces: the pieces of each tensor by name, in the order of their first elements.
        files: the facts that identified each file when it was opened first, by name.
        encoded: every quantised tensor by its name in an unquantised checkpoint.
        unread: how many entries are left unread, by what they are, such as ``optim``.
    """

    root: Path
    label: str
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]
    pieces: Mapping[str, Sequence[Piece]]
    files: Mapping[str, FileStat]
    encoded: Mapping[str, Encoded] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def shards(self) -> tuple[str, ...]:
        """The names of the files that hold tensors, sorted."""
        return tuple(sorted({piece.file for stored in self.pieces.values() for piece in stored}))

    @property
    def derived(self) -> Mapping[str, Derived]:
        """A folder stores all of its tensors."""
        return MappingProxyType({})

    @cached_property
    def logical(self) -> Mapping[str, Logical]:
        """Every logical tensor, in name order."""
        return logical_tensors(self.tensors, self.encoded)

    @property
    def identities(self) -> Mapping[str, FileStat]:
        """The facts that identified each file when it was opened first, by name."""
        return self.files

    def where(self, file: str) -> str:
        """Return the path of a file of the folder."""
        return str(self.root / file)

    def open(self, file: str, *, again: bool = False) -> OpenPieces:
        """Open one of `files`; a read of a tensor opens the other files of its pieces as it needs them."""
        return OpenPieces(self, file, again=again)

    def shard(self, file: str, *, again: bool = False) -> OpenShard:
        """Open one of `files` for reads of its own bytes."""
        return OpenShard(self.root, file, self.files[file], again=again)

    def require_unchanged(self) -> None:
        """Raise ``E_CHANGED`` unless every file is the file that was opened first."""
        for file in self.files:
            with self.shard(file):
                pass

    def sha256_of_files(self) -> dict[str, str]:
        """Read each of `files` once, in pieces of 8 MiB, and return its sha256 by name, as ``sha256sum`` gives it."""
        buffer, found = memoryview(bytearray(PIECE_BYTES)), {}
        for file in sorted(self.files):
            whole = hashlib.sha256()
            with self.shard(file) as shard:
                for position in range(0, shard.size, PIECE_BYTES):
                    piece = buffer[: min(PIECE_BYTES, shard.size - position)]
                    shard.fill(piece, position)
                    whole.update(piece)
            found[file] = whole.hexdigest()
        return found

    def read_small(self, name: str, limit: int) -> bytes | None:
        """Return the bytes of a file of the folder, None if there is none; ``E_JSON`` if it is longer than `limit`."""
        return files.read_small(self.root, name, limit)[0] if files.exists(self.root / name) else None

    def beside(self) -> list[SideFile]:
        """Return every file of the folder that is not among `files`, those that a server acts on first."""
        found = side_files.side_files(self.root, self.files, one_file=False)
        own = {file.rpartition("/")[0] + "/" for file in self.files}
        return [entry for entry in found if entry.file not in own]

    def require_unchanged_beside(self, first: Collection[SideFile]) -> None:
        """Raise ``E_CHANGED`` if a file that a server may act on was added, removed or written since `beside`."""
        side_files.require_unchanged(self.root, self.files, first, one_file=False)


class OpenPieces:
    """An open file of a `TrainingSource`, from which tensors are read whose first piece it holds.

    It is a context manager. Entering it raises ``E_CHANGED`` unless the file is the file that was opened first.
    Its memory is `SCRATCH_BYTES`.

    Args:
        source: the checkpoint.
        file: the name of the file.
        again: whether the bytes will be read once more; the system's cache then keeps them.
    """

    def __init__(self, source: TrainingSource, file: str, *, again: bool = False) -> None:
        self._source = source
        self._file = file
        self._again = again
        self._first = source.shard(file, again=again)
        self._scratch = memoryview(b"")

    def __enter__(self) -> OpenPieces:
        self._first.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._first.__exit__(*exception)

    def read_into(self, buffer: memoryview, tensor: StoredTensor, start: int) -> None:
        """Fill the buffer with the tensor's bytes from `start` on, or raise ``E_CHANGED``."""
        itemsize, stop = DTYPE_BITS[tensor.dtype] // 8, start + len(buffer)
        for piece in self._source.pieces[tensor.name]:
            found = list(runs(tensor.shape, piece, itemsize, start, stop))
            if found and piece.file == self._file:
                self._join(self._first, buffer, tensor, start, piece, found)
            elif found:
                with self._source.shard(piece.file, again=self._again) as shard:
                    self._join(shard, buffer, tensor, start, piece, found)

    def _join(
        self,
        shard: OpenShard,
        buffer: memoryview,
        tensor: StoredTensor,
        start: int,
        piece: Piece,
        found: list[tuple[Runs, range]],
    ) -> None:
        """Copy the bytes of one piece to their places in a buffer that begins at `start` of the tensor."""
        for group, indices in found:
            at_a_time = 1 if group.length >= LONG_RUN else max(1, SCRATCH_BYTES // group.length)
            for first in range(indices.start, indices.stop, at_a_time):
                last = min(first + at_a_time, indices.stop)
                if last - first == 1:
                    _read_run(shard, buffer, tensor, start, piece, group, first)
                    continue
                held = self._room()[: (last - first) * group.length]
                shard.fill(held, piece.begin + group.stored + first * group.length, tensor.name)
                _scatter(held, buffer, start, group, range(first, last))

    def _room(self) -> memoryview:
        if not self._scratch:
            self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        return self._scratch


def _read_run(
    shard: OpenShard,
    buffer: memoryview,
    tensor: StoredTensor,
    start: int,
    piece: Piece,
    group: Runs,
    index: int,
) -> None:
    position = group.position + index * group.stride
    begin, end = max(position, start), min(position + group.length, start + len(buffer))
    stored = piece.begin + group.stored + index * group.length + begin - position
    shard.fill(buffer[begin - start : end - start], stored, tensor.name)


def _scatter(held: memoryview, buffer: memoryview, start: int, group: Runs, indices: range) -> None:
    """Copy runs that were read together to their places; the buffer may cut the first and the last of them."""
    length, stop = group.length, start + len(buffer)
    for number, index in enumerate(indices):
        position = group.position + index * group.stride
        begin, end = max(position, start), min(position + length, stop)
        taken = number * length + begin - position
        buffer[begin - start : end - start] = held[taken : taken + end - begin]
