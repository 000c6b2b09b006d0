"""Read tensors of a checkpoint into memory of this process, and hash exactly the bytes that are read.

No file is mapped. If a mapped file shrinks, the system kills the process without a message, and mapped pages count as
memory of the process. A positional read raises an error that can be caught, and its memory can be freed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from threading import BoundedSemaphore, Lock
from typing import Any

import torch

from moe_atlas.checkpoint.digest import (
    CheckpointDigest,
    TensorHash,
    combine,
    complete_hashes,
    hexdigests,
    rehash,
)
from moe_atlas.checkpoint.headers.header import DTYPE_BITS, TORCH_NAMES, StoredTensor
from moe_atlas.checkpoint.headers.refuse import place, refusal
from moe_atlas.checkpoint.quantised.decode import decode
from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.errors import IntegrityError, ResourceExhausted

_ALIGNMENT = 64
BEHIND = 3  # tensors that wait for hashing while another one is hashed
SPARE = 16  # recycled buffers of each size


class Reader:
    """A reader of the tensors of one checkpoint; its memory is the requested tensors, plus 8 MiB in `finish`.

    A second thread may use it at the same time, to read ahead.

    Attributes:
        bytes_read: bytes of tensors read from files so far.
        page_locked: whether new buffers are page-locked until `forget`, so that a GPU can copy from them while it
            computes.
        again: whether the bytes read from now on will be read once more; the system's cache then keeps them.
        shared: files that another reader reads directly after this one.
    """

    def __init__(self, checkpoint: TensorSource) -> None:
        self.checkpoint = checkpoint
        self.bytes_read = 0
        self.page_locked = self.again = False
        self.shared: frozenset[str] = frozenset()
        self._hashes = {name: TensorHash() for name in checkpoint.tensors}
        self._hasher: Executor | None = None
        self._unhashed = BoundedSemaphore(BEHIND + 1)
        self._lock = Lock()
        self._spare: dict[int, list[torch.Tensor]] = {}

    def read(self, name: str, index: int | None = None, rows: range | None = None) -> torch.Tensor:
        """Read a tensor, one entry of its leading dimension, or some rows of either; decode a quantised tensor.

        A derived tensor is computed from the tensors of which it is made; only its entry or rows are read of them.

        Args:
            name: the name of a stored tensor, or of a quantised tensor.
            index: the entry of the leading dimension of a stacked tensor; only its bytes are read.
            rows: consecutive rows, of entry `index` if that is given; only their bytes are read.

        Returns:
            A tensor of the stored shape (without the leading dimension if `index` is given) and dtype, in a buffer
            of its own, aligned to 64 bytes. A quantised tensor is float32, or bfloat16 if that is exact.

        Raises:
            InputRefused: ``E_DTYPE`` for a dtype that this version of torch does not have, ``E_QUANT`` if the parts of
                a quantised tensor contradict each other.
            IntegrityError: ``E_CHANGED`` if the file is no longer the file that was opened first.
        """
        derived = self.checkpoint.derived.get(name)
        return self._given(name, index, rows) if derived is None else derived.read(self._given, index, rows)

    def _given(self, name: str, index: int | None, rows: range | None) -> torch.Tensor:
        """Read what is stored under a name, decoded where it is quantised."""
        entry = self.checkpoint.encoded.get(name)
        if entry is None:
            return self._read_stored(name, index, rows)
        return self._read_encoded(entry, index) if rows is None else self._decode_rows(entry, index, rows)

    def _decode_rows(self, entry: Encoded, index: int | None, rows: range) -> torch.Tensor:
        """Decode some rows of a quantised matrix, with the rows that share a scale or a word with them."""
        if index is not None:
            return self._read_encoded(entry, index)[rows.start : rows.stop].clone()
        assert len(entry.shape) == 2, f"rows of {entry.name}, of shape {entry.shape}"
        together = {role: entry.encoding.rows_together(role) for role in entry.parts}
        step = math.lcm(*(count for count in together.values() if count))
        begin, end = rows.start // step * step, min(-(-rows.stop // step) * step, entry.shape[0])
        parts = {}
        for role, name in entry.parts.items():
            count = together[role]
            part = range(begin // count, -(-end // count)) if count else None
            if part is not None and entry.encoding.turned:
                parts[role] = self._read_stored(name, None)[:, part.start : part.stop]
            else:
                parts[role] = self._read_stored(name, None, part)
        return decode(entry, parts, self.checkpoint.label)[rows.start - begin : rows.stop - begin]

    def _read_encoded(self, entry: Encoded, index: int | None) -> torch.Tensor:
        """Decode a quantised tensor; of a stack with a matrix for each expert, decode only entry `index`."""
        parts = {role: self._read_stored(*part) for role, part in self._parts(entry, index).items()}
        if index is None or len(entry.shape) < 3:
            whole = decode(entry, parts, self.checkpoint.label)
            return whole if index is None else whole[index].clone()
        return decode(replace(entry, shape=entry.shape[1:]), parts, self.checkpoint.label)

    def _parts(self, entry: Encoded, index: int | None) -> dict[str, tuple[str, int | None]]:
        """Read the parts of a quantised tensor, or of its entry `index`, by role."""
        if index is None or len(entry.shape) < 3:
            return {role: (name, None) for role, name in entry.parts.items()}
        tensors = self.checkpoint.tensors
        return {
            role: (name, index if tensors[name].shape[:1] == entry.shape[:1] else None)
            for role, name in entry.parts.items()
        }

    def _read_stored(self, name: str, index: int | None, rows: range | None = None) -> torch.Tensor:
        tensor = self.checkpoint.tensors[name]
        dtype = _torch_dtype(tensor, self.checkpoint)
        shape, start, stop = _extent(tensor, index, rows)
        data = self._memory(stop - start)
        self._read_into(data.numpy().data, tensor, start)
        if dtype is torch.bool:
            return data.ne(0).reshape(shape)  # a byte other than 0 and 1 is no valid bool in memory
        return data.view(dtype).reshape(shape)

    def recycle(self, tensors: Iterable[torch.Tensor]) -> None:
        """Keep the buffers of tensors that nobody uses any more, for later reads of the same size.

        To allocate a new buffer costs as much time as to read into it.
        """
        storages = {storage.data_ptr(): storage for storage in (t.untyped_storage() for t in tensors)}
        self._after_hashing(lambda: self._take_back(storages))

    def _take_back(self, storages: Mapping[int, torch.UntypedStorage]) -> None:
        with self._lock:
            for storage in storages.values():
                spare = self._spare.get(len(storage))
                if spare is not None and len(spare) < SPARE:
                    spare.append(torch.empty(0, dtype=torch.uint8).set_(storage))

    def forget(self) -> None:
        """Free the recycled buffers, and allocate no more page-locked buffers."""
        with self._lock:
            self._spare.clear()
            self.page_locked = False

    def _memory(self, nbytes: int) -> torch.Tensor:
        """Return uninitialised bytes on a 64-byte boundary, from a recycled buffer of this size if there is one."""
        size = nbytes + _ALIGNMENT
        with self._lock:
            spare = self._spare.setdefault(size, [])
            whole = spare.pop() if spare else None
        whole = _fresh_bytes(nbytes, page_locked=self.page_locked) if whole is None else whole
        offset = -whole.data_ptr() % _ALIGNMENT
        return whole[offset : offset + nbytes]

    def read_bytes(self, tensor: StoredTensor, start: int = 0, stop: int | None = None) -> memoryview:
        """Read the stored bytes from `start` to `stop` of a tensor's data.

        Raises:
            IntegrityError: ``E_CHANGED`` if the file is no longer the file that was opened first.
        """
        stop = tensor.nbytes if stop is None else stop
        assert 0 <= start <= stop <= tensor.nbytes, f"{start}:{stop} of {tensor.nbytes} bytes"
        data = memoryview(bytearray(stop - start))
        self._read_into(data, tensor, start)
        return data

    def hashed(self) -> dict[str, tuple[int, str]]:
        """Return the number of hashed bytes of each tensor, and their sha256; tensors without any are left out."""
        if self._hasher is not None:
            self._hasher.submit(int).result()  # after all before it
        return {
            name: (running.position, running.hexdigest())
            for name, running in self._hashes.items()
            if running.position
        }

    def share_hashes(self, other: Reader) -> None:
        """Hash only once what this reader and another one both read: tensors in files of equal identities."""
        own, theirs = self.checkpoint, other.checkpoint
        known = {
            (theirs.identities[tensor.file], tensor.begin, tensor.nbytes): other._hashes[tensor.name]
            for tensor in theirs.tensors.values()
            if tensor.nbytes
        }
        for name, tensor in own.tensors.items():
            place_in_file = own.identities[tensor.file], tensor.begin, tensor.nbytes
            self._hashes[name] = known.get(place_in_file, self._hashes[name])

    def restore(self, hashed: Mapping[str, Sequence[Any]], bytes_read: int) -> None:
        """Restore the state of an earlier reader: read the bytes that it had hashed, and compare their sha256.

        Args:
            hashed: the result of its `hashed`.
            bytes_read: its `bytes_read`; the bytes that are read again do not count.

        Raises:
            IntegrityError: ``E_CHANGED`` if the bytes are not the same.
        """
        for name, (position, sha256) in hashed.items():
            rehash(self.checkpoint, self._hashes[name], self.checkpoint.tensors[name], position)
            if self._hashes[name].hexdigest() != sha256:
                where = place(self.checkpoint.label, name)
                raise IntegrityError(
                    "E_CHANGED", where, "holds other bytes than the interrupted audit consumed"
                )
        self.bytes_read = bytes_read

    def finish(self) -> CheckpointDigest:
        """Hash the bytes that are not hashed yet, check that no file changed, and return the checkpoint's digest.

        A read hashes its bytes if they follow the bytes already hashed of that tensor. This method streams the bytes
        that were read in another order or not at all.

        Raises:
            IntegrityError: ``E_CHANGED`` if a file is no longer the file that was opened first.
        """
        digests = self.complete(self.checkpoint.tensors)
        self.unchanged()
        return combine(self.checkpoint, digests)

    def complete(self, names: Iterable[str]) -> dict[str, str]:
        """Return the sha256 of these tensors; hash now the bytes that were not read in order.

        Raises:
            IntegrityError: ``E_CHANGED`` if a file is no longer the file that was opened first.
        """
        hashes = {name: self._hashes[name] for name in names}
        streamed = complete_hashes(self.checkpoint, hashes)
        with self._lock:
            self.bytes_read += streamed
        return hexdigests(hashes)

    def unchanged(self) -> None:
        """Raise ``E_CHANGED`` unless every file of the checkpoint is the file that was opened first."""
        self.checkpoint.require_unchanged()

    def _read_into(self, buffer: memoryview, tensor: StoredTensor, start: int) -> None:
        again = self.again or tensor.file in self.shared
        with self.checkpoint.open(tensor.file, again=again) as opened:
            opened.read_into(buffer, tensor, start)
        with self._lock:
            self.bytes_read += len(buffer)
        self._unhashed.acquire()
        self._after_hashing(lambda: self._hash(buffer, tensor, start))

    def _hash(self, buffer: memoryview, tensor: StoredTensor, start: int) -> None:
        try:
            self._hashes[tensor.name].consume(buffer, start)
        finally:
            self._unhashed.release()

    def _after_hashing(self, work: Callable[[], None]) -> None:
        """Run an action after all bytes read so far are hashed."""
        if self._hasher is None:
            work()
        else:
            self._hasher.submit(work)

    @contextmanager
    def hashing_behind(self, hasher: Executor) -> Iterator[None]:
        """Within this context the one thread of `hasher` hashes reads in their order, while the next read proceeds."""
        self._hasher = hasher
        try:
            with hasher:
                yield
        finally:
            self._hasher = None


def torch_dtype(name: str) -> torch.dtype | None:
    """Return torch's dtype for a dtype as safetensors spells it; None where this torch has none."""
    dtype = getattr(torch, TORCH_NAMES.get(name, ""), None)
    return dtype if isinstance(dtype, torch.dtype) else None


def _torch_dtype(tensor: StoredTensor, checkpoint: TensorSource) -> torch.dtype:
    dtype = torch_dtype(tensor.dtype)
    if dtype is None:
        problem = f"stored as {tensor.dtype}, which torch {torch.__version__} cannot hold"
        where = checkpoint.where(tensor.file)
        raise refusal("E_DTYPE", where, problem, "use a newer torch", name=tensor.name)
    return dtype


def _extent(
    tensor: StoredTensor, index: int | None, rows: range | None = None
) -> tuple[tuple[int, ...], int, int]:
    """Return shape and byte range of a tensor, of one entry of its leading dimension, or of rows of either."""
    shape, start, nbytes = tensor.shape, 0, tensor.nbytes
    if index is not None:
        assert 0 <= index < (shape or (0,))[0], f"entry {index} of shape {shape}"
        shape = shape[1:]
        nbytes = math.prod(shape) * DTYPE_BITS[tensor.dtype] // 8
        start = index * nbytes
    if rows is not None:
        assert 0 <= rows.start <= rows.stop <= (shape or (0,))[0], f"rows {rows} of shape {shape}"
        row = math.prod(shape[1:]) * DTYPE_BITS[tensor.dtype] // 8
        shape = (len(rows), *shape[1:])
        start, nbytes = start + rows.start * row, len(rows) * row
    return shape, start, start + nbytes


def _fresh_bytes(nbytes: int, *, page_locked: bool) -> torch.Tensor:
    try:
        return torch.empty(nbytes + _ALIGNMENT, dtype=torch.uint8, pin_memory=page_locked)
    except RuntimeError:
        step = "run on a machine with more free memory"
        raise ResourceExhausted(
            "E_MEMORY", "reading a tensor", f"no memory for {nbytes} bytes", step
        ) from None
