"""What identifies a checkpoint's tensors: one sha256 for each, and one over the sorted list of them.

The list does not mention files, so resharding or reordering a checkpoint leaves its digest alone, while a
changed bit, name, dtype or shape does not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from threading import Lock
from types import MappingProxyType

from moe_atlas.checkpoint import uncached
from moe_atlas.checkpoint.files import FileStat, open_regular, require_same
from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.headers.refuse import place
from moe_atlas.checkpoint.index import Checkpoint
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


def config_sha256(checkpoint: Checkpoint) -> str:
    """Return the sha256 of what ``config.json`` says: keys sorted, ASCII, no spaces; its layout does not matter.

    The same tensors under another configuration are another model: k, an epsilon or a rotation base stands there.
    """
    text = json.dumps(checkpoint.config, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


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
    return combine(checkpoint, hexdigests(hashes))


def digest_with_files(checkpoint: Checkpoint) -> tuple[CheckpointDigest, dict[str, str]]:
    """Read every file of a checkpoint once; digest its tensors, and each file as ``sha256sum`` does.

    Returns:
        The digest of the checkpoint, and the sha256 of each of its files (shards, index, config) by plain name.

    Raises:
        IntegrityError: ``E_CHANGED`` when a file is no longer the one that was opened.
    """
    hashes = {name: TensorHash() for name in checkpoint.tensors}
    tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: (tensor.file, tensor.begin))
    stored = {file: list(group) for file, group in groupby(tensors, key=lambda tensor: tensor.file)}
    buffer = memoryview(bytearray(PIECE_BYTES))
    files = {}
    for file in sorted(checkpoint.files):
        with OpenShard(checkpoint, file) as shard:
            files[file] = _digest_file(shard, stored.get(file, []), hashes, buffer)
    require_unchanged(checkpoint)
    return combine(checkpoint, hexdigests(hashes)), files


def _digest_file(
    shard: OpenShard, tensors: list[StoredTensor], hashes: Mapping[str, TensorHash], buffer: memoryview
) -> str:
    """Hash a whole file and, from the same bytes, its tensors, which cover it from the header's end to its own."""
    whole = hashlib.sha256()
    first = tensors[0].begin if tensors else shard.size
    spans: list[tuple[int, int, TensorHash | None]] = [(0, first, None)]
    spans += [(tensor.begin, tensor.begin + tensor.nbytes, hashes[tensor.name]) for tensor in tensors]
    for begin, end, running in spans:
        for position in range(begin, end, PIECE_BYTES):
            piece = buffer[: min(PIECE_BYTES, end - position)]
            shard.fill(piece, position)
            whole.update(piece)
            if running is not None:
                running.consume(piece, position - begin)
    return whole.hexdigest()


def complete_hashes(checkpoint: Checkpoint, hashes: Mapping[str, TensorHash]) -> int:
    """Read what these running hashes have not seen, in file order and bounded pieces; return the bytes read."""
    total = 0
    tensors = sorted(
        (checkpoint.tensors[name] for name in hashes), key=lambda tensor: (tensor.file, tensor.begin)
    )
    buffer = memoryview(bytearray(PIECE_BYTES))
    for file, group in groupby(tensors, key=lambda tensor: tensor.file):
        pending = [tensor for tensor in group if hashes[tensor.name].position < tensor.nbytes]
        if not pending:
            continue
        with OpenShard(checkpoint, file) as shard:
            for tensor in pending:
                total += _complete(shard, tensor, hashes[tensor.name], buffer)
    return total


def rehash(checkpoint: Checkpoint, running: TensorHash, tensor: StoredTensor, stop: int) -> None:
    """Advance a running hash to `stop` by reading the tensor's bytes."""
    with OpenShard(checkpoint, tensor.file) as shard:
        _complete(shard, tensor, running, memoryview(bytearray(min(PIECE_BYTES, stop))), stop)


def _complete(
    shard: OpenShard,
    tensor: StoredTensor,
    running: TensorHash,
    buffer: memoryview,
    stop: int | None = None,
) -> int:
    first = position = running.position
    stop = tensor.nbytes if stop is None else stop
    while position < stop:
        piece = buffer[: min(PIECE_BYTES, stop - position)]
        shard.read_into(piece, tensor, position)
        running.consume(piece, position)
        position += len(piece)
    return position - first


def hexdigests(hashes: Mapping[str, TensorHash]) -> dict[str, str]:
    """The sha256 of every tensor by name."""
    return {name: running.hexdigest() for name, running in hashes.items()}


def combine(checkpoint: Checkpoint, digests: Mapping[str, str]) -> CheckpointDigest:
    """Join the sha256 of every tensor into the digest of the checkpoint."""
    manifest = hashlib.sha256()
    ordered = {name: digests[name] for name in sorted(checkpoint.tensors)}
    for name, sha256 in ordered.items():
        manifest.update(manifest_line(checkpoint.tensors[name], sha256))
    return CheckpointDigest(manifest.hexdigest(), MappingProxyType(ordered))


def manifest_line(tensor: StoredTensor, sha256: str) -> bytes:
    """Return the line that stands for one tensor in a digest over several."""
    shape = ",".join(map(str, tensor.shape))
    return f"{tensor.name}\t{tensor.dtype}\t[{shape}]\t{sha256}\n".encode()


def require_unchanged(checkpoint: Checkpoint) -> None:
    """Raise ``E_CHANGED`` unless every file of the checkpoint is the one that was opened first."""
    for file in checkpoint.files:
        with OpenShard(checkpoint, file):
            pass


class OpenShard:
    """One file of a checkpoint, open for positional reads, known to be the one that was opened first.

    A context manager; entering it raises ``E_CHANGED`` when the file is gone or is not the same.

    Args:
        checkpoint: whose file it is.
        file: its plain name.
        again: whether its bytes will be read once more, so that the system had better keep them.
    """

    def __init__(self, checkpoint: Checkpoint, file: str, *, again: bool = False) -> None:
        self._again = again
        self._label = str(checkpoint.root / file)
        self._opening = open_regular(checkpoint.root, file)
        self._first: FileStat = checkpoint.files[file]
        self.size = self._first.size

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
        self.fill(buffer, tensor.begin + start, tensor.name)

    def fill(self, buffer: memoryview, offset: int, name: str | None = None) -> None:
        """Fill the buffer with the file's bytes from `offset` on, or raise ``E_CHANGED``."""
        filled = 0
        while filled < len(buffer):
            count = self._pread(buffer[filled:], offset + filled)
            if count == 0:
                problem = "the file became shorter while it was being read"
                raise IntegrityError("E_CHANGED", place(self._label, name), problem)
            filled += count

    def _pread(self, buffer: memoryview, offset: int) -> int:
        try:
            if not self._again and (count := uncached.read(self._descriptor, buffer, offset)):
                return count
            return os.preadv(self._descriptor, [buffer], offset)
        except OSError as error:
            raise IntegrityError(
                "E_CHANGED", place(self._label), f"can no longer be read: {error.strerror}"
            ) from None
