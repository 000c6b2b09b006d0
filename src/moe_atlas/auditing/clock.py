"""Where the time of an audit goes, by phase."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Wall-clock seconds by phase, in the order in which the phases came up; phases do not nest."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as `name`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin

    def waiting(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, counting as `name` the time until each is there."""
        source = iter(items)
        while True:
            with self.phase(name):
                item = next(source, None)
            if item is None:
                return
            yield item

    def facts(self) -> dict[str, float]:
        """Seconds by phase, to the millisecond."""
        return {name: round(seconds, 3) for name, seconds in self._seconds.items()}
