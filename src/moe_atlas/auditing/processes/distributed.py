"""Communication of the processes that share an audit; the only module that uses `torch.distributed`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from moe_atlas.auditing.processes.digests import digest_of
from moe_atlas.auditing.processes.group import Group, Part, prefetched_rows
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.errors import AtlasError, InputRefused, IntegrityError, ResourceExhausted, UsageError
from moe_atlas.loading.load import EntryKey, ReaderLike, entries
from moe_atlas.models.spec import TensorRef
from moe_atlas.options import Place
from moe_atlas.text import shown

T = TypeVar("T")
JOIN_TIMEOUT = timedelta(minutes=5)  # until all processes have joined
CALL_TIMEOUT = timedelta(hours=1)  # until another process, busy with its share, answers
ABANDON_TIMEOUT = 30.0  # seconds until all processes know why the audit ends
PIECE = 1 << 28  # bytes sent at a time
TOKENS = 512  # tokens whose sums are sent at a time
KINDS = {kind.exit_code: kind for kind in (InputRefused, UsageError, IntegrityError, ResourceExhausted)}


class DistributedGroup(Group):
    """Several processes that share an audit.

    Args:
        place: rank of this process.
        cuda: whether tensors may be on a GPU.

    Raises:
        ResourceExhausted: ``E_RANK``, here and in every method, if another process has ended or cannot be reached.
        AtlasError: in every method, the error that another process raised.
    """

    def __init__(self, place: Place, *, cuda: bool = False) -> None:
        self.rank, self.size, self._local = place.rank, place.size, place.local
        self._loads = [0] * place.size
        self._known: AtlasError | None = None
        try:
            self._store, _, _ = next(rendezvous("env://", place.rank, place.size, timeout=JOIN_TIMEOUT))
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(
                backend, timeout=CALL_TIMEOUT, store=self._store, rank=place.rank, world_size=place.size
            )
        except (RuntimeError, ValueError, OSError) as error:
            problem = f"the processes did not meet within {JOIN_TIMEOUT.seconds} s: {shown(str(error), 200)}"
            step = "start all of them, with torchrun, or run the audit in one"
            raise ResourceExhausted("E_RANK", self._name, problem, step) from error

    def gather(self, value: T) -> list[T]:
        """See `Group.gather`."""
        values: list[Any] = [None] * self.size
        self._call(dist.all_gather_object, values, value)
        return values

    def gather_to_leader(self, value: T) -> list[T]:
        """See `Group.gather_to_leader`."""
        values: list[Any] | None = [None] * self.size if self.leads else None
        self._call(dist.gather_object, value, values)
        return values or []

    def broadcast_object(self, value: T | None) -> T:
        """See `Group.broadcast_object`."""
        values: list[Any] = [value]
        self._call(dist.broadcast_object_list, values)
        return values[0]  # type: ignore[no-any-return]

    def leave(self, value: T | None) -> T:
        """See `Group.leave`."""
        try:
            value = self.broadcast_object(value)
            self.gather(None)
        except AtlasError:
            if value is None:
                raise
        dist.destroy_process_group()
        assert value is not None
        return value

    def agree(self, parts: Mapping[str, Any]) -> None:
        """See `Group.agree`.

        Raises:
            UsageError: ``E_RANK``.
        """
        found = self.gather({name: digest_of(value) for name, value in parts.items()})
        differing = [
            f"{name} (process {rank})"
            for rank, other in enumerate(found)
            for name in other
            if other[name] != found[0].get(name)
        ]
        if differing:
            problem = f"not as in process 0: {', '.join(differing)}"
            step = "give all processes the same files, software, options and kind of machine"
            raise UsageError("E_RANK", f"{self.size} processes", problem, step)

    def read_once(
        self, readers: Sequence[Reader], refs: Sequence[Sequence[TensorRef]], pool: Executor
    ) -> Sequence[ReaderLike]:
        """See `Group.read_once`."""
        wanted = [(number, entry) for number, part in enumerate(refs) for entry in entries(part)]
        owners = [self._assign_reader(readers[number], entry) for number, entry in wanted]

        def read(item: int) -> Tensor | None:
            number, entry = wanted[item]
            return readers[number].read(*entry) if owners[item] == self.rank else None

        received: list[dict[EntryKey, Tensor]] = [{} for _ in readers]
        for (number, entry), owner, tensor in zip(
            wanted, owners, pool.map(read, range(len(wanted))), strict=True
        ):
            received[number][entry] = self.broadcast(tensor, owner)
        return [MemoryReader(tensors) for tensors in received]

    def rows(
        self, readers: Sequence[Reader], refs: Sequence[TensorRef], parts: Sequence[Part], pool: Executor
    ) -> Iterator[list[Tensor | None]]:
        """See `Group.rows`."""
        owners = [
            self._assign_reader(reader, (ref.stored, ref.index))
            for reader, ref in zip(readers, refs, strict=True)
        ]
        mine = [number for number, owner in enumerate(owners) if owner == self.rank]
        own = [readers[number] for number in mine], [refs[number] for number in mine]
        own_parts = [[part[side] for side in mine] for part in parts]
        for part, tensors in zip(parts, prefetched_rows(*own, own_parts, pool), strict=True):
            read = dict(zip(mine, tensors, strict=True))
            yield [
                None if rows is None else self.broadcast(read.get(number), owner)
                for number, (rows, owner) in enumerate(zip(part, owners, strict=True))
            ]

    def broadcast(self, tensor: Tensor | None, owner: int) -> Tensor:
        """See `Group.broadcast`."""
        form = None if tensor is None else (tensor.dtype, tuple(tensor.shape), tensor.is_cuda)
        forms: list[Any] = [form]
        self._call(dist.broadcast_object_list, forms, src=owner)
        if self.rank != owner:
            dtype, shape, on_gpu = forms[0]
            tensor = torch.empty(shape, dtype=dtype, device=f"cuda:{self._local}" if on_gpu else "cpu")
        assert tensor is not None
        tensor = tensor.contiguous()
        for piece in _bytes(tensor).split(PIECE):
            self._call(dist.broadcast, piece, src=owner)
        return tensor

    def collect(
        self, values: Tensor, parts: Callable[[range], Sequence[Any]], experts: int, owner: int
    ) -> None:
        """See `Group.collect`."""
        for rank in range(self.size):
            if rank == owner or self.rank not in (rank, owner):
                continue
            for index in parts(self.share(experts, rank)):
                part = values[index].contiguous()
                if self.rank == rank:
                    self._call(dist.send, _bytes(part), owner)
                else:
                    self._call(dist.recv, _bytes(part), rank)
                    values[index] = part

    def add_up(self, values: Tensor, owner: int) -> None:
        """See `Group.add_up`."""
        for part in values.split(TOKENS):
            if self.rank != owner:
                self._call(dist.send, _bytes(part), owner)
                continue
            mine = part.clone()
            part.zero_()
            for rank in range(self.size):
                term = mine if rank == owner else torch.empty_like(part)
                if rank != owner:
                    self._call(dist.recv, _bytes(term), rank)
                part += term

    def abandon(self, error: AtlasError) -> None:
        """Publish the error that ends the audit, so that the leader can print it, and wait until all have seen it."""
        process_lost = error.code == "E_RANK" and isinstance(error, ResourceExhausted)
        with contextlib.suppress(RuntimeError):  # the process that hosts the store has ended
            if not process_lost and self._known is None:
                facts = [error.exit_code, error.code, error.where, error.problem, error.next_step]
                self._store.compare_set("why", "", json.dumps(facts))
        dist.destroy_process_group()  # a process that waits for this one gets an error
        if process_lost:
            return  # the lost process would never acknowledge
        with contextlib.suppress(RuntimeError):
            self._acknowledge("heard")
            if self.leads:  # the leader may host the store, so it leaves last
                self._acknowledge("left")
            else:
                self._store.add("left", 1)

    def _acknowledge(self, key: str) -> None:
        """Count this process under `key`, and wait until all processes are counted."""
        end = time.monotonic() + ABANDON_TIMEOUT
        self._store.add(key, 1)
        while self._store.add(key, 0) < self.size and time.monotonic() < end:
            time.sleep(0.01)

    @property
    def _name(self) -> str:
        return f"process {self.rank} of {self.size}"

    def _assign_reader(self, reader: Reader, entry: EntryKey) -> int:
        """Assign an entry to the process with the fewest bytes so far; every process computes the same assignment."""
        rank = self._loads.index(min(self._loads))
        self._loads[rank] += _size(reader.checkpoint, *entry)
        return rank

    def _call(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        try:
            operation(*arguments, **options)
        except RuntimeError as error:
            raise self._cause() from error

    def _cause(self) -> AtlasError:
        """Return the error that another process published, or the error of a lost process."""
        with contextlib.suppress(RuntimeError):
            if self._store.check(["why"]):
                exit_code, *facts = json.loads(self._store.get("why"))
                self._known = KINDS[exit_code](*facts)
                return self._known
        return ResourceExhausted(
            "E_RANK",
            self._name,
            "another process of this audit has ended or cannot be reached; nothing was written",
            "find out why it ended (often a lack of memory), and run the audit again",
        )


class MemoryReader:
    """A reader of entries that are already in memory."""

    def __init__(self, tensors: Mapping[EntryKey, Tensor]) -> None:
        self._tensors = tensors

    def read(self, name: str, index: int | None = None) -> Tensor:
        """Return a stored tensor, or entry `index` of its leading dimension."""
        return self._tensors[name, index]


def _size(checkpoint: TensorSource, name: str, index: int | None) -> int:
    """Return the bytes of a stored tensor, or of one entry of its leading dimension."""
    tensor = checkpoint.logical[name]
    parts = getattr(tensor, "parts", {"": name}).values()
    size = sum(checkpoint.tensors[part].nbytes for part in parts)
    return size if index is None else size // tensor.shape[0]


def _bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a contiguous tensor as a view of its memory."""
    return tensor.reshape(-1).view(torch.uint8)
