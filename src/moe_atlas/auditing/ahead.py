"""Work done in the background, a bounded number of steps ahead of who needs it."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from itertools import islice
from threading import Condition
from typing import TypeVar

import torch

T = TypeVar("T")
DEPTH = 2  # steps ahead
NICE = 19
WORKERS = 2  # threads: one step is hashed while the next one is read


def ahead(pool: Executor, work: Callable[[int], T], steps: Iterable[int], depth: int = DEPTH) -> Iterator[T]:
    """`work(step)` of every step in order; `pool` starts at once and stays at most `depth` steps ahead.

    With a depth of 0 a step starts when it is asked for. An error of the work is raised where its result would have
    been. Once the iterator is exhausted, is closed or has raised, nothing is under way any more.
    """
    todo = iter(steps)
    waiting = deque(pool.submit(work, step) for step in islice(todo, depth))
    return _results(pool, work, todo, waiting)


def _results(
    pool: Executor, work: Callable[[int], T], todo: Iterator[int], waiting: deque[Future[T]]
) -> Iterator[T]:
    try:
        while True:
            waiting.extend(pool.submit(work, step) for step in islice(todo, 1))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


class Turns:
    """A part of every step that is done in the order of the steps, whoever does the rest of them when.

    Steps must begin in order, as those of `ahead` do, with `first`: then each one's turn comes.
    """

    def __init__(self, first: int = 0) -> None:
        self._next, self._passed = first, Condition()

    def wait(self, step: int) -> None:
        """Wait until every earlier step's turn is over."""
        with self._passed:
            self._passed.wait_for(lambda: self._next >= step)

    def over(self, step: int) -> None:
        """Let the next step have its turn."""
        with self._passed:
            self._next = max(self._next, step + 1)
            self._passed.notify_all()


def background() -> ThreadPoolExecutor:
    """Threads for work done ahead, which leave the processor to the matrix products when both want it.

    A product is divided evenly among its threads, so one that shares its core holds up all the others.
    """
    return ThreadPoolExecutor(WORKERS, initializer=_step_back)


def _step_back() -> None:
    torch.set_num_threads(1)  # of this thread
    if sys.platform.startswith("linux"):  # elsewhere it is the process that would step back
        os.nice(NICE)
