"""Telling the system what will be read soon, so that the disk is at work while the processor is at something else."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from itertools import accumulate
from threading import Lock

from moe_atlas.checkpoint.digest import OpenShard
from moe_atlas.checkpoint.header import StoredTensor
from moe_atlas.checkpoint.index import Checkpoint
from moe_atlas.errors import IntegrityError

DISTANCE = 256 << 20  # bytes that are fetched before they are asked for

Extent = tuple[StoredTensor, int, int]
"""A tensor, and where in its data a read begins and ends."""


class Foresight:
    """What will be read of a checkpoint, in order; nothing but speed depends on it.

    Args:
        checkpoint: whose files they are.
        extents: the reads to come.
    """

    def __init__(self, checkpoint: Checkpoint, extents: Iterable[Extent]) -> None:
        self._checkpoint, self._extents = checkpoint, list(extents)
        sizes = (stop - start for _, start, stop in self._extents)
        self._ends = list(accumulate(sizes, initial=0))
        self._places: dict[tuple[str, int], int] = {}
        for (tensor, start, _), place in zip(self._extents, self._ends, strict=False):
            self._places.setdefault((tensor.name, start), place)  # a tied head is the embedding, read again
        self._asked, self._lock = 0, Lock()

    def reached(self, tensor: StoredTensor, start: int) -> None:
        """Ask for what comes within `DISTANCE` of a read that begins now, as far as it was not asked for."""
        place = self._places.get((tensor.name, start))
        if place is None:
            return
        with self._lock:
            begin, end = max(place, self._asked), min(place + DISTANCE, self._ends[-1])
            self._asked = max(end, self._asked)
        while begin < end:
            number = bisect_right(self._ends, begin) - 1
            until = min(end, self._ends[number + 1])
            soon, offset, _ = self._extents[number]
            offset += begin - self._ends[number]
            with suppress(IntegrityError):  # a file that changed is found by whoever reads it
                self._ask(soon, offset, until - begin)
            begin = until

    def _ask(self, tensor: StoredTensor, start: int, length: int) -> None:
        with OpenShard(self._checkpoint, tensor.file) as shard:
            shard.will_need(tensor.begin + start, length)
