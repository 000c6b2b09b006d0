"""Experts on their way from where they are read to where they are multiplied.

They cross to a GPU from page-locked memory, on a stream of copies beside that of the products: while one expert is
multiplied, the next ones are on their way. Their memory, there and here, is given up once the products are done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

T = TypeVar("T")
QUEUED = 1  # experts whose products may still be under way while those of the next one are begun


class Here:
    """The processor multiplies where it reads: nothing crosses, and what was begun is done."""

    page_locked = False

    def send(self, move: Callable[[], T]) -> Callable[[], T]:
        """Begin `move`, in any thread; what is returned gives its result to the products, in theirs."""
        return move

    def used(self, held: Any, give_up: Callable[[], None]) -> None:
        """Keep `held` until all products begun so far are done, and call `give_up` then."""
        give_up()

    def finish(self) -> None:
        """Wait until everything has been given up."""


class Across(Here):
    """Copies to a GPU that products wait for, and products that the processor runs ahead of by a few experts only."""

    page_locked = True

    def __init__(self, device: torch.device) -> None:
        self._device, self._streams, self._copies = device, torch.get_device_module(device), _copies(device)
        self._under_way: deque[tuple[Any, Any, Callable[[], None]]] = deque()

    def send(self, move: Callable[[], T]) -> Callable[[], T]:
        """See `Here.send`."""
        with self._streams.stream(self._copies):
            moved = move()
            copied = self._copies.record_event()

        def arrive() -> T:
            self._products().wait_event(copied)
            return moved

        return arrive

    def used(self, held: Any, give_up: Callable[[], None]) -> None:
        """See `Here.used`."""
        self._under_way.append((self._products().record_event(), held, give_up))
        if len(self._under_way) > QUEUED:
            self._end()

    def finish(self) -> None:
        """See `Here.finish`."""
        while self._under_way:
            self._end()

    def _end(self) -> None:
        multiplied, held, give_up = self._under_way.popleft()
        multiplied.synchronize()
        del held  # allocated on the stream of copies, which may write there again only now
        give_up()

    def _products(self) -> Any:
        return self._streams.current_stream(self._device)


@cache
def _copies(device: torch.device) -> Any:
    """One stream for all layers: torch keeps memory that was freed for the stream that it was taken for."""
    return torch.get_device_module(device).Stream(device)


def transit(device: torch.device) -> Here:
    """How experts get to a device."""
    return Here() if device.type == "cpu" else Across(device)
