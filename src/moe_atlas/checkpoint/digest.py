"""What identifies a checkpoint's tensors: one sha256 for each, and one over the sorted list of them.

The list does not mention files, so resharding or reordering a checkpoint leaves its digest alone, while a
changed bit, name, dtype or shape does not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from threading import Lock
from types import MappingProxyType

from moe_atlas.checkpoint.files import FileStat, open_regular, require_same
from moe_atlas.checkpoint.header import StoredTensor
from moe_atlas.checkpoint.index import Checkpoint
from moe_atlas.checkpoint.refuse import place
from moe_atlas.errors import InputRefused, IntegrityError

PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class CheckpointDigest:
    """The identity of a checkpoint's tensors.

    Attributes:
        sha256: over one line ``name TAB dtype TAB shape TAB sha256 NEWLINE`` for each tensor, sorted by name,
            the shape written as ``[2,3]``, in UTF-8.
        tensors: the sha256 of each tensor's stored bytes, by name.
    """

    sha256: str
    tensors: Mapping[str, str]


class TensorHash:
    """The running sha256 of one tensor: it advances over bytes that continue where it stopped."""

    def __init__(self) -> None:
        self.position = 0
        self._sha256 = hashlib.sha256()
        self._lock = Lock()

    def consume(self, data: memoryview, start: int) -> None:
        """Take in bytes that stand at `start` in the tensor, as far as they extend what was taken in."""
        with self._lock:
            if start <= self.position < start + len(data):
                self._sha256.update(data[self.position - start :])
                self.position = start + len(data)

    def hexdigest(self) -> str:
        """Return the sha256 of the bytes taken in so far."""
        return self._sha256.hexdigest()


def digest_checkpoint(checkpoint: Checkpoint) -> CheckpointDigest:
    """Read every tensor of a checkpoint once, in pieces of 8 MiB, and digest it.

    Raises:
        IntegrityError: ``E_CHANGED`` when a file is no longer the one that was opened.
    """
    hashes = {name: TensorHash() for name in checkpoint.tensors}
    complete_hashes(checkpoint, hashes)
    require_unchanged(checkpoint)
    return combine(checkpoint, hashes)


def complete_hashes(checkpoint: Checkpoint, hashes: Mapping[str, TensorHash]) -> int:
    """Read what the running hashes have not seen, in file order and bounded pieces; return the bytes read."""
    total = 0
    tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: (tensor.file, tensor.begin))
    buffer = memoryview(bytearray(PIECE_BYTES))
    for file, group in groupby(tensors, key=lambda tensor: tensor.file):
        pending = [tensor for tensor in group if hashes[tensor.name].position < tensor.nbytes]
        if not pending:
            continue
        with OpenShard(checkpoint, file) as shard:
            for tensor in pending:
                total += _complete(shard, tensor, hashes[tensor.name], buffer)
    return total


def _complete(shard: OpenShard, tensor: StoredTensor, running: TensorHash, buffer: memoryview) -> int:
    first = position = running.position
    while position < tensor.nbytes:
        piece = buffer[: min(PIECE_BYTES, tensor.nbytes - position)]
        shard.read_into(piece, tensor, position)
        running.consume(piece, position)
        position += len(piece)
    return position - first


def combine(checkpoint: Checkpoint, hashes: Mapping[str, TensorHash]) -> CheckpointDigest:
    """Join complete hashes into the digest of the checkpoint."""
    manifest = hashlib.sha256()
    digests = {}
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        assert hashes[name].position == tensor.nbytes, f"{name} is not fully hashed"
        digests[name] = hashes[name].hexdigest()
        shape = ",".join(map(str, tensor.shape))
        manifest.update(f"{name}\t{tensor.dtype}\t[{shape}]\t{digests[name]}\n".encode())
    return CheckpointDigest(manifest.hexdigest(), MappingProxyType(digests))


def require_unchanged(checkpoint: Checkpoint) -> None:
    """Raise ``E_CHANGED`` unless every file of the checkpoint is the one that was opened first."""
    for file in checkpoint.files:
        with OpenShard(checkpoint, file):
            pass


class OpenShard:
    """One file of a checkpoint, open for positional reads, known to be the one that was opened first.

    A context manager; entering it raises ``E_CHANGED`` when the file is gone or is not the same.
    """

    def __init__(self, checkpoint: Checkpoint, file: str) -> None:
        self._label = str(checkpoint.root / file)
        self._opening = open_regular(checkpoint.root, file)
        self._first: FileStat = checkpoint.files[file]

    def __enter__(self) -> OpenShard:
        try:
            self._descriptor, now = self._opening.__enter__()
        except InputRefused as error:
            problem = f"changed while it was being read: {error.problem}"
            raise IntegrityError("E_CHANGED", error.where, problem) from None
        try:
            require_same(self._first, now, self._label)
        except IntegrityError:
            self._opening.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._opening.__exit__(None, None, None)

    def read_into(self, buffer: memoryview, tensor: StoredTensor, start: int) -> None:
        """Fill the buffer with the tensor's bytes from `start` on, or raise ``E_CHANGED``."""
        filled = 0
        while filled < len(buffer):
            count = self._pread(buffer[filled:], tensor.begin + start + filled)
            if count == 0:
                where = place(self._label, tensor.name)
                raise IntegrityError("E_CHANGED", where, "the file became shorter while it was being read")
            filled += count

    def _pread(self, buffer: memoryview, offset: int) -> int:
        try:
            return os.preadv(self._descriptor, [buffer], offset)
        except OSError as error:
            raise IntegrityError(
                "E_CHANGED", place(self._label), f"can no longer be read: {error.strerror}"
            ) from None
