"""Background work that runs a bounded number of steps ahead of its consumer."""

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
WORKERS = 2  # threads that compare experts


def prefetch(start: Callable[[int], Future[T]], steps: Iterable[int], depth: int = DEPTH) -> Generator[T]:
    """Yield the results of all steps in order, with at most `depth` further steps running or done.

    The first `depth` steps start at once, and steps start in order. With a depth of 0, a step starts when the consumer
    asks for its result. An error of a step is raised in place of its result. After the generator is exhausted, closed
    or has raised, no step is running.

    Args:
        start: starts a step in the background.
        steps: the steps.
        depth: most steps that run beside the step whose result the consumer awaits.
    """
    todo = iter(steps)
    waiting = deque(start(step) for step in islice(todo, depth))
    return _results(start, todo, waiting)


def _results(
    start: Callable[[int], Future[T]], todo: Iterator[int], waiting: deque[Future[T]]
) -> Generator[T]:
    try:
        while True:
            waiting.extend(start(step) for step in islice(todo, 1))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


def low_priority_pool(workers: int = WORKERS) -> ThreadPoolExecutor:
    """Return a pool of background threads that run at low priority.

    A matrix product is divided evenly among its threads, so a background thread that shares the core of one of them
    would delay all of them.
    """
    return ThreadPoolExecutor(workers, initializer=_lower_priority)


def reader_thread() -> ThreadPoolExecutor:
    """Return a pool of one thread, which reads in order.

    The thread keeps normal priority: it is I/O-bound, and delaying it would idle the disk.
    """
    return ThreadPoolExecutor(1, "reading", torch.set_num_threads, (1,))


def _lower_priority() -> None:
    torch.set_num_threads(1)  # of this thread
    if sys.platform.startswith("linux"):  # other systems would lower the priority of the whole process
        os.nice(NICE)
