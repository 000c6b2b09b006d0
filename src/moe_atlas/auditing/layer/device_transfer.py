"""Transfer of experts from the memory into which they are read to the device that multiplies them.

A GPU receives experts from page-locked memory, on a copy stream beside the stream of the products. So the next experts
cross while one expert is multiplied. The transfer frees the memory of an expert, on both sides, after its products.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

T = TypeVar("T")
QUEUED = 1  # experts whose products may still run when the products of the next expert start


class SameDevice:
    """The CPU case: experts are multiplied in the memory into which they are read, and every call is synchronous.

    Attributes:
        page_locked: whether experts must be read into page-locked memory.
    """

    page_locked = False

    def start(self, move: Callable[[], T]) -> Callable[[], T]:
        """Start `move` from any thread; call the returned function on the compute thread to get the result."""
        return move

    def release_after(self, held: Any, release: Callable[[], None]) -> None:
        """Keep `held` alive until all products started so far are done, then call `release`."""
        release()

    def wait(self) -> None:
        """Wait until all held memory is released."""


class ToGpu(SameDevice):
    """Copies to a GPU on a separate stream; products wait for the copies of their own expert only.

    The CPU may start the products of at most `QUEUED` more experts while products of an earlier expert run.

    Args:
        device: the GPU.
    """

    page_locked = True

    def __init__(self, device: torch.device) -> None:
        self._device, self._streams = device, torch.get_device_module(device)
        self._copies = _copy_stream(device)
        self._running: deque[tuple[Any, Any, Callable[[], None]]] = deque()

    def start(self, move: Callable[[], T]) -> Callable[[], T]:
        """See `SameDevice.start`."""
        with self._streams.stream(self._copies):
            moved = move()
            copied = self._copies.record_event()

        def arrive() -> T:
            self._products().wait_event(copied)
            return moved

        return arrive

    def release_after(self, held: Any, release: Callable[[], None]) -> None:
        """See `SameDevice.release_after`."""
        self._running.append((self._products().record_event(), held, release))
        if len(self._running) > QUEUED:
            self._release_first()

    def wait(self) -> None:
        """See `SameDevice.wait`."""
        while self._running:
            self._release_first()

    def _release_first(self) -> None:
        multiplied, held, release = self._running.popleft()
        multiplied.synchronize()
        del held  # the copy stream allocated this memory and may write to it again only now
        release()

    def _products(self) -> Any:
        return self._streams.current_stream(self._device)


@cache
def _copy_stream(device: torch.device) -> Any:
    """Return one copy stream for all layers, because torch reuses freed memory only on the stream that allocated it."""
    return torch.get_device_module(device).Stream(device)


def transfer_to(device: torch.device) -> SameDevice:
    """Return the transfer of experts to a device."""
    return SameDevice() if device.type == "cpu" else ToGpu(device)
