"""One audit by several processes: who does what, and how they tell each other.

Every process walks the same layers. Of each layer it reads and evaluates its share of the experts, and it owns some of
the batches: it alone holds their states, takes them through attention and head, and reads what experts said of them.
The leader, process 0, derives, writes and prints.

The only module that knows `torch.distributed`, and it imports it only where there is more than one process. What is
said twice or not at all would hang or corrupt, so every method but those of `Alone` that need no others is called by
all processes, in the same order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from moe_atlas.auditing.options import Place
from moe_atlas.checkpoint.index import Checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.errors import AtlasError, InputRefused, IntegrityError, ResourceExhausted, UsageError
from moe_atlas.families.load import Entry, ReaderLike, entries
from moe_atlas.families.spec import TensorRef

T = TypeVar("T")
R = TypeVar("R")
COMING = timedelta(minutes=5)  # until all processes are there
BUSY = timedelta(minutes=30)  # until another process, busy with its share, answers
HEARD = 30.0  # seconds until all processes know why the audit ends
PIECE = 1 << 28  # bytes sent at a time
TOKENS = 512  # tokens whose sums are sent at a time
KINDS = {kind.exit_code: kind for kind in (InputRefused, UsageError, IntegrityError, ResourceExhausted)}


class Alone:
    """One process: everything is its own, and nobody needs to be told."""

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this process derives, writes and prints."""
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> range:
        """Which of `count` experts a process (this one by default) reads: consecutive, so that files are, too."""
        rank = self.rank if rank is None else rank
        return range(count * rank // self.size, count * (rank + 1) // self.size)

    def owner(self, number: int) -> int:
        """Which process a batch, or a piece of divided work, belongs to."""
        return number % self.size

    def owns(self, number: int) -> bool:
        """Whether it belongs to this one."""
        return self.owner(number) == self.rank

    def spread(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`work` of every item, each done by one process and known to all."""
        mine = {number: work(item) for number, item in enumerate(items) if self.owns(number)}
        done = {number: result for part in self.gather(mine) for number, result in part.items()}
        return [done[number] for number in range(len(items))]

    def gather(self, value: T) -> list[T]:
        """What each process has, in their order, to all of them."""
        return [value]

    def bring(self, value: T) -> list[T]:
        """What each process has, in their order, to the leader; nothing to the others."""
        return [value]

    def told(self, value: T | None) -> T:
        """What the leader has."""
        assert value is not None
        return value

    def leave(self, value: T | None) -> T:
        """What the leader has, at the end, when losing another process changes nothing any more."""
        return self.told(value)

    def agree(self, parts: Mapping[str, Any]) -> None:
        """Refuse processes that see or compute something else; `parts` are JSON values or tensors by name."""

    def deliver(
        self, readers: Sequence[Reader], refs: Sequence[Sequence[TensorRef]], pool: Executor
    ) -> Sequence[ReaderLike]:
        """Readers that have, for each checkpoint, what its references name; each entry is read by one process."""
        return readers

    def broadcast(self, tensor: Tensor | None, owner: int) -> Tensor:
        """A tensor of its owner's, bit for bit, to all processes."""
        assert tensor is not None
        return tensor

    def collect(
        self, values: Tensor, parts: Callable[[range], Sequence[Any]], experts: int, owner: int
    ) -> None:
        """Complete the owner's `values` in place by those of the other processes' experts.

        Args:
            values: what was found for all of a layer's experts, each process having found what concerns its share.
            parts: indices into `values` of what concerns some experts, the same in every process.
            experts: how many there are.
            owner: who needs them.
        """

    def add_up(self, values: Tensor, owner: int) -> None:
        """Add to the owner's `values`, in place and in the order of processes, those of all others."""


class Ranks(Alone):
    """Processes that share an audit.

    Args:
        place: this one's among them.
        cuda: whether tensors may lie on a GPU.

    Raises:
        ResourceExhausted: ``E_RANK``, here and in every method, when another process has ended or cannot be reached.
        AtlasError: in every method, the one that another process met.
    """

    def __init__(self, place: Place, *, cuda: bool = False) -> None:
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.size, self._local = place.rank, place.size, place.local
        self._dist = dist
        self._loads = [0] * place.size
        self._known: AtlasError | None = None
        try:
            self._store, _, _ = next(rendezvous("env://", place.rank, place.size, timeout=COMING))
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(
                backend, timeout=BUSY, store=self._store, rank=place.rank, world_size=place.size
            )
        except (RuntimeError, ValueError, OSError) as error:
            problem = f"expected {place.size} processes to meet within {COMING.seconds} s, and they did not"
            step = "start all of them, with torchrun, or run the audit in one"
            raise ResourceExhausted("E_RANK", self._name, problem, step) from error

    def gather(self, value: T) -> list[T]:
        """See `Alone.gather`."""
        found: list[Any] = [None] * self.size
        self._call(self._dist.all_gather_object, found, value)
        return found

    def bring(self, value: T) -> list[T]:
        """See `Alone.bring`."""
        found: list[Any] | None = [None] * self.size if self.leads else None
        self._call(self._dist.gather_object, value, found)
        return found or []

    def told(self, value: T | None) -> T:
        """See `Alone.told`."""
        found: list[Any] = [value]
        self._call(self._dist.broadcast_object_list, found)
        return found[0]  # type: ignore[no-any-return]

    def leave(self, value: T | None) -> T:
        """See `Alone.leave`."""
        try:
            value = self.told(value)
            self._call(self._dist.barrier)
        except AtlasError:
            if value is None:
                raise
        self._dist.destroy_process_group()
        assert value is not None
        return value

    def agree(self, parts: Mapping[str, Any]) -> None:
        """See `Alone.agree`.

        Raises:
            UsageError: ``E_RANK``.
        """
        found = self.gather({name: _digest(value) for name, value in parts.items()})
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
        """See `Alone.deliver`."""
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

    def broadcast(self, tensor: Tensor | None, owner: int) -> Tensor:
        """See `Alone.broadcast`."""
        form = None if tensor is None else (tensor.dtype, tuple(tensor.shape), tensor.is_cuda)
        said: list[Any] = [form]
        self._call(self._dist.broadcast_object_list, said, src=owner)
        if self.rank != owner:
            dtype, shape, on_gpu = said[0]
            tensor = torch.empty(shape, dtype=dtype, device=f"cuda:{self._local}" if on_gpu else "cpu")
        assert tensor is not None
        tensor = tensor.contiguous()
        for piece in _bytes(tensor).split(PIECE):
            self._call(self._dist.broadcast, piece, src=owner)
        return tensor

    def collect(
        self, values: Tensor, parts: Callable[[range], Sequence[Any]], experts: int, owner: int
    ) -> None:
        """See `Alone.collect`."""
        for rank in range(self.size):
            if rank == owner or self.rank not in (rank, owner):
                continue
            for index in parts(self.share(experts, rank)):
                part = values[index].contiguous()
                if self.rank == rank:
                    self._call(self._dist.send, _bytes(part), owner)
                else:
                    self._call(self._dist.recv, _bytes(part), rank)
                    values[index] = part

    def add_up(self, values: Tensor, owner: int) -> None:
        """See `Alone.add_up`."""
        for part in values.split(TOKENS):
            if self.rank != owner:
                self._call(self._dist.send, _bytes(part), owner)
                continue
            mine = part.clone()
            part.zero_()
            for rank in range(self.size):
                term = mine if rank == owner else torch.empty_like(part)
                if rank != owner:
                    self._call(self._dist.recv, _bytes(term), rank)
                part += term

    def abandon(self, error: AtlasError) -> None:
        """Let the others know why the audit ends, so that the leader can say it; wait until they do."""
        if self._known is None:
            facts = [error.exit_code, error.code, error.where, error.problem, error.next_step]
            self._store.compare_set("why", "", json.dumps(facts))
        self._dist.destroy_process_group()  # whoever waits for this process notices
        if error.code == "E_RANK" and error.exit_code == ResourceExhausted.exit_code:
            return  # one is gone: it will not answer
        with contextlib.suppress(RuntimeError):  # whoever held the store has left
            end = time.monotonic() + HEARD
            self._store.add("heard", 1)
            while self._store.add("heard", 0) < self.size and time.monotonic() < end:
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


@contextlib.contextmanager
def joined(place: Place | None, *, cuda: bool = False) -> Iterator[Alone]:
    """The processes that share the audit inside; an error of one of them ends all of them with it.

    From its end on SIGTERM is ignored where there are several: a launcher ends them all as soon as the first leaves,
    and the leader still has something to say.
    """
    if place is None:
        yield Alone()
        return
    ranks = Ranks(place, cuda=cuda)
    try:
        yield ranks
    except AtlasError as error:
        ranks.abandon(error)
        raise
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _digest(value: Any) -> str:
    raw = (
        value.cpu().numpy().tobytes()
        if isinstance(value, Tensor)
        else json.dumps(value, sort_keys=True, default=str)
    )
    return hashlib.sha256(raw if isinstance(raw, bytes) else raw.encode()).hexdigest()


def _size(checkpoint: Checkpoint, name: str, index: int | None) -> int:
    """Bytes of a stored tensor, or of one entry of its leading dimension."""
    tensor = checkpoint.logical[name]
    parts = getattr(tensor, "parts", {"": name}).values()
    size = sum(checkpoint.tensors[part].nbytes for part in parts)
    return size if index is None else size // tensor.shape[0]


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor, sharing its memory."""
    return tensor.reshape(-1).view(torch.uint8)
