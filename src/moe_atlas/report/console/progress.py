"""Progress of a long run on standard error: phase, layer, bytes read, time left. Silent where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from moe_atlas.options import Progress as Watcher
from moe_atlas.options import Silent
from moe_atlas.text import duration, size

SHOWN_PHASES = 4  # so that the dozens of phases of a long run do not fill the terminal
QUIET_SECONDS = 30.0  # a log that is not a terminal gets a line this often, so that a pipeline sees life


class Bar:
    """A Rich progress bar fed by the audit."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def phase(self, name: str, steps: int) -> None:
        """A new bar for a new phase; the last few stay."""
        for task in self._progress.task_ids[: 1 - SHOWN_PHASES]:
            self._progress.remove_task(task)
        self._task = self._progress.add_task(name, total=steps, detail="")

    def step(self, detail: str, bytes_read: int) -> None:
        """Move the bar."""
        assert self._task is not None
        self._progress.update(self._task, advance=1, detail=f"{detail}, {size(bytes_read)} read")


class Log:
    """A line for each phase, and a line with the time left every half minute, for logs."""

    def __init__(self) -> None:
        self._name, self._steps, self._done = "", 0, 0
        self._started = self._last = time.monotonic()

    def phase(self, name: str, steps: int) -> None:
        """Name the phase."""
        self._name, self._steps, self._done = name, steps, 0
        self._started = time.monotonic()
        _say(f"atlas: {name}: {steps} steps")

    def step(self, detail: str, bytes_read: int) -> None:
        """Say how far the phase is, now and then."""
        self._done += 1
        now = time.monotonic()
        if now - self._last < QUIET_SECONDS:
            return
        self._last = now
        left = (now - self._started) / self._done * max(self._steps - self._done, 0)
        done = f"{self._done}/{self._steps} ({detail}, {size(bytes_read)} read)"
        _say(f"atlas: {self._name}: {done}, about {duration(left)} left")


def _say(line: str) -> None:
    """A line of the log; hours of work do not end because nobody reads it."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


@contextmanager
def watching(*, quiet: bool) -> Iterator[Watcher]:
    """What the audit reports to: a bar on a terminal, a log elsewhere, nothing when quiet."""
    if quiet:
        yield Silent()
    elif not sys.stderr.isatty():
        yield Log()
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield Bar(progress)
