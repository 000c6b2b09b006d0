"""Work done in the background, a bounded number of steps ahead of who needs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
DEPTH = 2  # steps ahead
WORKERS = 2  # threads: one step is hashed while the next one is read


def ahead(pool: Executor, work: Callable[[int], T], steps: Iterable[int], depth: int = DEPTH) -> Iterator[T]:
    """`work(step)` of every step in order; `pool` starts at once and stays at most `depth` steps ahead.

    An error of the work is raised where its result would have been. Once the iterator is exhausted, is closed or has
    raised, nothing is under way any more.
    """
    todo = iter(steps)
    waiting = deque(pool.submit(work, step) for step in islice(todo, depth))
    return _results(pool, work, todo, waiting)


def _results(
    pool: Executor, work: Callable[[int], T], todo: Iterator[int], waiting: deque[Future[T]]
) -> Iterator[T]:
    try:
        while waiting:
            waiting.extend(pool.submit(work, step) for step in islice(todo, 1))
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)
