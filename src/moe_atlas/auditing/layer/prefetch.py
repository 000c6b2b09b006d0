"""Work done in the background, a bounded number of steps ahead of who needs it."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

import torch

T = TypeVar("T")
DEPTH = 2  # steps ahead
NICE = 19
WORKERS = 2  # threads that look at what was read


def ahead(begin: Callable[[int], Future[T]], steps: Iterable[int], depth: int = DEPTH) -> Generator[T]:
    """The results of every step in order; steps begin in order, the first at once, at most `depth` ahead.

    With a depth of 0 a step begins when it is asked for. An error of a step is raised where its result would have
    been. Once the iterator is exhausted, is closed or has raised, none of the steps is under way any more.

    Args:
        begin: begins a step in the background.
        steps: which.
        depth: how many of them at most, beside the one that is asked for.
    """
    todo = iter(steps)
    waiting = deque(begin(step) for step in islice(todo, depth))
    return _results(begin, todo, waiting)


def _results(
    begin: Callable[[int], Future[T]], todo: Iterator[int], waiting: deque[Future[T]]
) -> Generator[T]:
    try:
        while True:
            waiting.extend(begin(step) for step in islice(todo, 1))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


def background(workers: int = WORKERS) -> ThreadPoolExecutor:
    """Threads for work done ahead, which leave the processor to the matrix products when both want it.

    A product is divided evenly among its threads, so one that shares its core holds up all the others.
    """
    return ThreadPoolExecutor(workers, initializer=_step_back)


def reading() -> ThreadPoolExecutor:
    """A thread that reads in order. It does not step back: mostly it waits for the disk, which must not wait for it."""
    return ThreadPoolExecutor(1, "reading", torch.set_num_threads, (1,))


def _step_back() -> None:
    torch.set_num_threads(1)  # of this thread
    if sys.platform.startswith("linux"):  # elsewhere it is the process that would step back
        os.nice(NICE)
