"""The digest of a checkpoint: the sha256 of each tensor, and one sha256 over the sorted list of tensors.

The list does not name files. So resharding or reordering a checkpoint does not change its digest, but a change of any
bit, name, dtype or shape does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from threading import Lock
from types import MappingProxyType

from moe_atlas.checkpoint.files import PIECE_BYTES
from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.index import Checkpoint
from moe_atlas.checkpoint.shard import OpenShard
from moe_atlas.checkpoint.source import OpenFile, TensorSource


@dataclass(frozen=True)
class CheckpointDigest:
    """The identity of a checkpoint's tensors.

    Attributes:
        sha256: the sha256 of the lines ``name TAB dtype TAB shape TAB sha256 NEWLINE``, one for each tensor, sorted by
            name, in UTF-8, with shapes such as ``[2,3]``.
        tensors: the sha256 of each tensor's stored bytes, by name.
    """

    sha256: str
    tensors: Mapping[str, str]


def config_sha256(checkpoint: TensorSource) -> str:
    """Return the sha256 of the content of ``config.json`` (sorted keys, ASCII, no spaces); its layout does not matter.

    The same tensors with another configuration are another model: it states k, epsilons and the rotation base.
    """
    text = json.dumps(checkpoint.config, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class TensorHash:
    """The running sha256 of one tensor; it takes in only bytes that follow the bytes it already has."""

    def __init__(self) -> None:
        self.position = 0
        self._sha256 = hashlib.sha256()
        self._lock = Lock()

    def consume(self, data: memoryview, start: int) -> None:
        """Take in the bytes that begin at `start` of the tensor, as far as they follow the bytes already taken in."""
        with self._lock:
            if start <= self.position < start + len(data):
                self._sha256.update(data[self.position - start :])
                self.position = start + len(data)

    def hexdigest(self) -> str:
        """Return the sha256 of the bytes taken in so far."""
        return self._sha256.hexdigest()


def digest_checkpoint(checkpoint: TensorSource) -> CheckpointDigest:
    """Read every tensor of a checkpoint once, in pieces of 8 MiB, and return the digest.

    Raises:
        IntegrityError: ``E_CHANGED`` if a file is no longer the file that was opened first.
    """
    hashes = {name: TensorHash() for name in checkpoint.tensors}
    complete_hashes(checkpoint, hashes)
    checkpoint.require_unchanged()
    return combine(checkpoint, hexdigests(hashes))


def digest_with_files(checkpoint: Checkpoint) -> tuple[CheckpointDigest, dict[str, str]]:
    """Read every file of a checkpoint once; digest its tensors, and hash each file as ``sha256sum`` does.

    Returns:
        The digest of the checkpoint, and the sha256 of each of its files (shards, index, config) by plain name.

    Raises:
        IntegrityError: ``E_CHANGED`` if a file is no longer the file that was opened first.
    """
    hashes = {name: TensorHash() for name in checkpoint.tensors}
    tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: (tensor.file, tensor.begin))
    stored = {file: list(group) for file, group in groupby(tensors, key=lambda tensor: tensor.file)}
    buffer = memoryview(bytearray(PIECE_BYTES))
    files = {}
    for file in sorted(checkpoint.files):
        with checkpoint.open(file) as shard:
            files[file] = _digest_file(shard, stored.get(file, []), hashes, buffer)
    checkpoint.require_unchanged()
    return combine(checkpoint, hexdigests(hashes)), files


def _digest_file(
    shard: OpenShard, tensors: list[StoredTensor], hashes: Mapping[str, TensorHash], buffer: memoryview
) -> str:
    """Hash a whole file and, from the same bytes, its tensors, which cover it from the end of the header to its end."""
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


def complete_hashes(checkpoint: TensorSource, hashes: Mapping[str, TensorHash]) -> int:
    """Complete running hashes: read the missing bytes in file order, in bounded pieces; return the bytes read."""
    total = 0
    tensors = sorted(
        (checkpoint.tensors[name] for name in hashes), key=lambda tensor: (tensor.file, tensor.begin)
    )
    buffer = memoryview(bytearray(PIECE_BYTES))
    for file, group in groupby(tensors, key=lambda tensor: tensor.file):
        pending = [tensor for tensor in group if hashes[tensor.name].position < tensor.nbytes]
        if not pending:
            continue
        with checkpoint.open(file) as opened:
            for tensor in pending:
                total += _complete(opened, tensor, hashes[tensor.name], buffer)
    return total


def beginning(checkpoint: TensorSource, most: int) -> Iterator[memoryview]:
    """Yield the first bytes, at most `most`, of the tensors in the largest file; pieces of 8 MiB share one buffer."""
    stored: dict[str, list[StoredTensor]] = {}
    for tensor in sorted(checkpoint.tensors.values(), key=lambda tensor: (tensor.file, tensor.begin)):
        stored.setdefault(tensor.file, []).append(tensor)
    file = max(stored, key=lambda name: sum(tensor.nbytes for tensor in stored[name]))
    buffer, filled = memoryview(bytearray(PIECE_BYTES)), 0
    with checkpoint.open(file) as opened:
        for tensor in stored[file]:
            start, stop = 0, min(tensor.nbytes, most)
            most -= stop
            while start < stop:
                piece = buffer[filled : filled + stop - start]  # ends where the buffer ends
                opened.read_into(piece, tensor, start)
                start, filled = start + len(piece), (filled + len(piece)) % len(buffer)
                if not filled:
                    yield buffer
    if filled:
        yield buffer[:filled]


def rehash(checkpoint: TensorSource, running: TensorHash, tensor: StoredTensor, stop: int) -> None:
    """Read bytes of a tensor to advance its running hash to `stop`."""
    with checkpoint.open(tensor.file) as opened:
        _complete(opened, tensor, running, memoryview(bytearray(min(PIECE_BYTES, stop))), stop)


def _complete(
    opened: OpenFile,
    tensor: StoredTensor,
    running: TensorHash,
    buffer: memoryview,
    stop: int | None = None,
) -> int:
    first = position = running.position
    stop = tensor.nbytes if stop is None else stop
    while position < stop:
        piece = buffer[: min(PIECE_BYTES, stop - position)]
        opened.read_into(piece, tensor, position)
        running.consume(piece, position)
        position += len(piece)
    return position - first


def hexdigests(hashes: Mapping[str, TensorHash]) -> dict[str, str]:
    """Return the sha256 of every tensor by name."""
    return {name: running.hexdigest() for name, running in hashes.items()}


def combine(checkpoint: TensorSource, digests: Mapping[str, str]) -> CheckpointDigest:
    """Join the sha256 of every tensor into the digest of the checkpoint."""
    manifest = hashlib.sha256()
    ordered = {name: digests[name] for name in sorted(checkpoint.tensors)}
    for name, sha256 in ordered.items():
        manifest.update(manifest_line(checkpoint.tensors[name], sha256))
    return CheckpointDigest(manifest.hexdigest(), MappingProxyType(ordered))


def manifest_line(tensor: StoredTensor, sha256: str) -> bytes:
    """Return the line of one tensor in a digest of several tensors."""
    shape = ",".join(map(str, tensor.shape))
    return f"{tensor.name}\t{tensor.dtype}\t[{shape}]\t{sha256}\n".encode()
