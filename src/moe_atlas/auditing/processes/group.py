"""Division of one audit among several processes, and their communication.

Every process walks the same layers. In each layer, a process reads and evaluates its share of the experts. A process
owns some of the batches: it alone holds their states, takes them through attention and head, and measures them. The
leader, process 0, derives, writes and prints.

All processes must call the same methods in the same order; otherwise they hang or exchange wrong values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from torch import Tensor

from moe_atlas.checkpoint.reader import Reader
from moe_atlas.loading.load import ReaderLike, load_rows
from moe_atlas.models.spec import TensorRef

T = TypeVar("T")
R = TypeVar("R")
Part = Sequence[range | None]
"""Rows of one tensor of each checkpoint; None where a checkpoint has no such rows."""


class Group:
    """The processes that share an audit, in the single-process case: it owns all work, and communication is a no-op."""

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this process derives, writes and prints."""
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> range:
        """Return the experts, of `count`, that process `rank` (this process by default) reads.

        They are consecutive, so a process reads consecutive parts of files.
        """
        rank = self.rank if rank is None else rank
        return range(count * rank // self.size, count * (rank + 1) // self.size)

    def owner(self, number: int) -> int:
        """Return the process that owns batch `number` or item `number` of divided work."""
        return number % self.size

    def owns(self, number: int) -> bool:
        """Return whether this process owns batch or item `number`."""
        return self.owner(number) == self.rank

    def spread(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return the result of `work` for every item; one process computes each result, and all receive it."""
        mine = {number: work(item) for number, item in enumerate(items) if self.owns(number)}
        done = {number: result for part in self.gather(mine) for number, result in part.items()}
        return [done[number] for number in range(len(items))]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in rank order, to every process."""
        return [value]

    def gather_to_leader(self, value: T) -> list[T]:
        """Return the values of all processes, in rank order, to the leader, and an empty list to the others."""
        return [value]

    def broadcast_object(self, value: T | None) -> T:
        """Return the leader's value to every process; the other processes pass None."""
        assert value is not None
        return value

    def leave(self, value: T | None) -> T:
        """Return the leader's value and leave the group, even if another process has ended by now."""
        return self.broadcast_object(value)

    def agree(self, parts: Mapping[str, Any]) -> None:
        """Refuse processes whose parts differ from those of process 0; parts are JSON values or tensors by name."""

    def read_once(
        self, readers: Sequence[Reader], refs: Sequence[Sequence[TensorRef]], pool: Executor
    ) -> Sequence[ReaderLike]:
        """Return a reader of the referenced entries for each checkpoint; only one process reads an entry from disk."""
        return readers

    def rows(
        self, readers: Sequence[Reader], refs: Sequence[TensorRef], parts: Sequence[Part], pool: Executor
    ) -> Iterator[list[Tensor | None]]:
        """Yield the rows of one tensor of each checkpoint, part by part, and read the next part in the background.

        One process reads all parts of a tensor, because a running hash accepts bytes only in order.
        """
        return prefetched_rows(readers, refs, parts, pool)

    def broadcast(self, tensor: Tensor | None, owner: int) -> Tensor:
        """Return the owner's tensor, bit for bit, to every process; the other processes may pass None."""
        assert tensor is not None
        return tensor

    def collect(
        self, values: Tensor, parts: Callable[[range], Sequence[Any]], experts: int, owner: int
    ) -> None:
        """Copy the values of all other processes' experts into the owner's `values`, in place.

        Args:
            values: values of a layer's experts; each process has filled in the values of its share.
            parts: returns the indices into `values` of some experts, the same in every process.
            experts: number of experts.
            owner: the process that needs all values.
        """

    def add_up(self, values: Tensor, owner: int) -> None:
        """Add the values of all other processes to the owner's `values`, in place and in rank order."""


def prefetched_rows(
    readers: Sequence[Reader], refs: Sequence[TensorRef], parts: Sequence[Part], pool: Executor
) -> Iterator[list[Tensor | None]]:
    """Yield rows as `Group.rows` does; memory holds one part of each tensor, and one more is being read."""

    def start(part: Part) -> list[Future[Tensor] | None]:
        return [
            None if rows is None else pool.submit(load_rows, reader, ref, rows)
            for reader, ref, rows in zip(readers, refs, part, strict=True)
        ]

    reading = start(parts[0])
    for following in (*parts[1:], None):
        tensors = [None if future is None else future.result() for future in reading]
        reading = [] if following is None else start(following)
        yield tensors
