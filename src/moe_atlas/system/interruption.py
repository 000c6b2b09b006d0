"""SIGINT and SIGTERM: stop once, undo what is half-done, and say one line. Torch-free."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from threading import Timer
from typing import Any

LINE = "stopped before a result was acknowledged"
NUMBERS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = (
    5.0  # seconds after which whoever asks again is not kept waiting; shells and launchers ask twice at once
)
RETRY = 0.05  # seconds


class Stopped(BaseException):
    """SIGINT or SIGTERM: nothing catches it on the way out but what undoes the half-done."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def end_at_once() -> None:
    """End at the first signal: for the time in which nothing has been begun."""
    for number in _heard():
        signal.signal(number, _end)


def listen() -> None:
    """Raise `Stopped` in the main thread at the first signal that is not ignored already."""
    sys.unraisablehook = _swallowed
    for number in _heard():
        signal.signal(number, _stop)


def ignore() -> None:
    """Let nothing stop what is left to do: the exit code is known."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _heard() -> list[signal.Signals]:
    return [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]


def _end(number: int, frame: object) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"atlas: {LINE}\n".encode())
    os._exit(128 + number)


def _stop(number: int, frame: object) -> None:
    began = time.monotonic()

    def again(number: int, frame: object) -> None:
        if time.monotonic() - began > PATIENCE:
            _end(number, frame)

    for each in _heard():
        signal.signal(each, again)
    raise Stopped(number)


def _swallowed(unraisable: Any) -> None:
    """Send a signal again that came while a finaliser ran: nothing that is raised there gets out."""
    stop = unraisable.exc_value
    if not isinstance(stop, Stopped):
        sys.__unraisablehook__(unraisable)
        return
    listen()
    Timer(RETRY, os.kill, (os.getpid(), stop.number)).start()
