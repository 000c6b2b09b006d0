"""The wall-clock time of an audit by phase."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Wall-clock seconds by phase, in the order of their first use; phases do not nest."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside this context as phase `name`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and count the wait for each item as phase `name`."""
        source = iter(items)
        while True:
            with self.phase(name):
                item = next(source, None)
            if item is None:
                return
            yield item

    def facts(self) -> dict[str, float]:
        """Return seconds by phase, rounded to the millisecond."""
        return {name: round(seconds, 3) for name, seconds in self._seconds.items()}
