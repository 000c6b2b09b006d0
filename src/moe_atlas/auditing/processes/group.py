"""One audit by several processes: who does what, and how they tell each other.

Every process walks the same layers. Of each layer it reads and evaluates its share of the experts, and it owns some of
the batches: it alone holds their states, takes them through attention and head, and reads what experts said of them.
The leader, process 0, derives, writes and prints.

What only one of them says or hears would hang or corrupt: all processes call the same methods in the same order.
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
    """The processes that share an audit; here just one, to which everything belongs and which need not be told."""

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

    def rows(
        self, readers: Sequence[Reader], refs: Sequence[TensorRef], parts: Sequence[Part], pool: Executor
    ) -> Iterator[list[Tensor | None]]:
        """Parts of one tensor of each checkpoint, in order, the next ones read in the background.

        Each tensor is read by one process: a running hash takes bytes in order only.
        """
        return rows_ahead(readers, refs, parts, pool)

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


def rows_ahead(
    readers: Sequence[Reader], refs: Sequence[TensorRef], parts: Sequence[Part], pool: Executor
) -> Iterator[list[Tensor | None]]:
    """See `Group.rows`; of a tensor one part is at hand and one being read."""

    def begin(part: Part) -> list[Future[Tensor] | None]:
        return [
            None if rows is None else pool.submit(load_rows, reader, ref, rows)
            for reader, ref, rows in zip(readers, refs, part, strict=True)
        ]

    coming = begin(parts[0])
    for following in (*parts[1:], None):
        here = [None if future is None else future.result() for future in coming]
        coming = [] if following is None else begin(following)
        yield here
