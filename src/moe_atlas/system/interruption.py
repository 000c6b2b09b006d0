"""SIGINT and SIGTERM: stop at the first signal, undo unfinished work, and print one line. Torch-free."""

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
PATIENCE = 5.0  # seconds during which further signals are ignored: shells and launchers send two at once
RETRY = 0.05  # seconds


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived; only code that undoes unfinished work may catch this exception."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def end_at_once() -> None:
    """End the process at the first signal, as long as there is no unfinished work."""
    for number in _active():
        signal.signal(number, _end)


def listen() -> None:
    """Raise `Stopped` in the main thread at the first signal; signals that are already ignored stay ignored."""
    sys.unraisablehook = _repeat_swallowed
    for number in _active():
        signal.signal(number, _stop)


def ignore() -> None:
    """Ignore both signals while the process finishes with a known exit code."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _active() -> list[signal.Signals]:
    """Return the signals that are not ignored."""
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

    for active in _active():
        signal.signal(active, again)
    raise Stopped(number)


def _repeat_swallowed(unraisable: Any) -> None:
    """Send a signal again if it arrived while a finaliser ran, because Python swallows exceptions of finalisers."""
    stop = unraisable.exc_value
    if not isinstance(stop, Stopped):
        sys.__unraisablehook__(unraisable)
        return
    listen()
    Timer(RETRY, os.kill, (os.getpid(), stop.number)).start()
