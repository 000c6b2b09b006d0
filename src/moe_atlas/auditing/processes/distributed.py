"""Processes that share an audit and speak by `torch.distributed`: the only module that knows it."""

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
from moe_atlas.auditing.processes.group import Group, Part, rows_ahead
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.errors import AtlasError, InputRefused, IntegrityError, ResourceExhausted, UsageError
from moe_atlas.loading.load import Entry, ReaderLike, entries
from moe_atlas.models.spec import TensorRef
from moe_atlas.options import Place
from moe_atlas.text import shown

T = TypeVar("T")
COMING = timedelta(minutes=5)  # until all processes are there
BUSY = timedelta(hours=1)  # until another process, busy with its share, answers
HEARD = 30.0  # seconds until all processes know why the audit ends
PIECE = 1 << 28  # bytes sent at a time
TOKENS = 512  # tokens whose sums are sent at a time
KINDS = {kind.exit_code: kind for kind in (InputRefused, UsageError, IntegrityError, ResourceExhausted)}


class Ranks(Group):
    """Processes that share an audit.

    Args:
        place: this one's among them.
        cuda: whether tensors may lie on a GPU.

    Raises:
        ResourceExhausted: ``E_RANK``, here and in every method, when another process has ended or cannot be reached.
        AtlasError: in every method, the one that another process met.
    """

    def __init__(self, place: Place, *, cuda: bool = False) -> None:
        self.rank, self.size, self._local = place.rank, place.size, place.local
        self._loads = [0] * place.size
        self._known: AtlasError | None = None
        try:
            self._store, _, _ = next(rendezvous("env://", place.rank, place.size, timeout=COMING))
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(
                backend, timeout=BUSY, store=self._store, rank=place.rank, world_size=place.size
            )
        except (RuntimeError, ValueError, OSError) as error:
            problem = f"the processes did not meet within {COMING.seconds} s: {shown(str(error), 200)}"
            step = "start all of them, with torchrun, or run the audit in one"
            raise ResourceExhausted("E_RANK", self._name, problem, step) from error

    def gather(self, value: T) -> list[T]:
        """See `Group.gather`."""
        found: list[Any] = [None] * self.size
        self._call(dist.all_gather_object, found, value)
        return found

    def bring(self, value: T) -> list[T]:
        """See `Group.bring`."""
        found: list[Any] | None = [None] * self.size if self.leads else None
        self._call(dist.gather_object, value, found)
        return found or []

    def told(self, value: T | None) -> T:
        """See `Group.told`."""
        found: list[Any] = [value]
        self._call(dist.broadcast_object_list, found)
        return found[0]  # type: ignore[no-any-return]

    def leave(self, value: T | None) -> T:
        """See `Group.leave`."""
        try:
            value = self.told(value)
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

    def deliver(
        self, readers: Sequence[Reader], refs: Sequence[Sequence[TensorRef]], pool: Executor
    ) -> Sequence[ReaderLike]:
        """See `Group.deliver`."""
        wanted = [(side, entry) for side, part in enumerate(refs) for entry in entries(part)]
        owners = [self._reads(readers[side], entry) for side, entry in wanted]

        def read(number: int) -> Tensor | None:
            side, entry = wanted[number]
            return readers[side].read(*entry) if owners[number] == self.rank else None

        delivered: list[dict[Entry, Tensor]] = [{} for _ in readers]
        for (side, entry), owner, tensor in zip(
            wanted, owners, pool.map(read, range(len(wanted))), strict=True
        ):
            delivered[side][entry] = self.broadcast(tensor, owner)
        return [Delivered(tensors) for tensors in delivered]

    def rows(
        self, readers: Sequence[Reader], refs: Sequence[TensorRef], parts: Sequence[Part], pool: Executor
    ) -> Iterator[list[Tensor | None]]:
        """See `Group.rows`."""
        owners = [self._reads(reader, (r.stored, r.index)) for reader, r in zip(readers, refs, strict=True)]
        mine = [side for side, owner in enumerate(owners) if owner == self.rank]
        own = [readers[side] for side in mine], [refs[side] for side in mine]
        own_parts = [[part[side] for side in mine] for part in parts]
        for part, tensors in zip(parts, rows_ahead(*own, own_parts, pool), strict=True):
            read = dict(zip(mine, tensors, strict=True))
            yield [
                None if rows is None else self.broadcast(read.get(side), owner)
                for side, (rows, owner) in enumerate(zip(part, owners, strict=True))
            ]

    def broadcast(self, tensor: Tensor | None, owner: int) -> Tensor:
        """See `Group.broadcast`."""
        form = None if tensor is None else (tensor.dtype, tuple(tensor.shape), tensor.is_cuda)
        said: list[Any] = [form]
        self._call(dist.broadcast_object_list, said, src=owner)
        if self.rank != owner:
            dtype, shape, on_gpu = said[0]
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
        """Let the others know why the audit ends, so that the leader can say it; wait until they do."""
        one_is_gone = error.code == "E_RANK" and isinstance(error, ResourceExhausted)
        with contextlib.suppress(RuntimeError):  # whoever held the store has left
            if not one_is_gone and self._known is None:
                facts = [error.exit_code, error.code, error.where, error.problem, error.next_step]
                self._store.compare_set("why", "", json.dumps(facts))
        dist.destroy_process_group()  # whoever waits for this process notices
        if one_is_gone:
            return  # it will not answer
        with contextlib.suppress(RuntimeError):
            self._all_have("heard")
            if self.leads:  # it may hold the store, and is the last to leave it
                self._all_have("left")
            else:
                self._store.add("left", 1)

    def _all_have(self, what: str) -> None:
        """Say that this process has, and wait until all have."""
        end = time.monotonic() + HEARD
        self._store.add(what, 1)
        while self._store.add(what, 0) < self.size and time.monotonic() < end:
            time.sleep(0.01)

    @property
    def _name(self) -> str:
        return f"process {self.rank} of {self.size}"

    def _reads(self, reader: Reader, entry: Entry) -> int:
        """Who reads an entry: whoever has read least so far; every process comes to the same answer."""
        rank = self._loads.index(min(self._loads))
        self._loads[rank] += _size(reader.checkpoint, *entry)
        return rank

    def _call(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        try:
            operation(*arguments, **options)
        except RuntimeError as error:
            raise self._why() from error

    def _why(self) -> AtlasError:
        """The error that another process met, or that there is none to ask."""
        with contextlib.suppress(RuntimeError):
            if self._store.check(["why"]):
                code, *said = json.loads(self._store.get("why"))
                self._known = KINDS[code](*said)
                return self._known
        return ResourceExhausted(
            "E_RANK",
            self._name,
            "another process of this audit has ended or cannot be reached; nothing was written",
            "see what ended it (often a lack of memory), and run the audit again",
        )


class Delivered:
    """Entries that are in memory, read like those of a checkpoint."""

    def __init__(self, tensors: Mapping[Entry, Tensor]) -> None:
        self._tensors = tensors

    def read(self, name: str, index: int | None = None) -> Tensor:
        """A stored tensor, or entry `index` of its leading dimension."""
        return self._tensors[name, index]


def _size(checkpoint: TensorSource, name: str, index: int | None) -> int:
    """Bytes of a stored tensor, or of one entry of its leading dimension."""
    tensor = checkpoint.logical[name]
    parts = getattr(tensor, "parts", {"": name}).values()
    size = sum(checkpoint.tensors[part].nbytes for part in parts)
    return size if index is None else size // tensor.shape[0]


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor, sharing its memory."""
    return tensor.reshape(-1).view(torch.uint8)
