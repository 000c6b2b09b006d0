"""What people see: what is happening, how long it took, what was written where."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
Advance = Callable[[int, str], None]


def say(line: str) -> None:
    """One line of plain text."""
    console.print(line)


def title(line: str) -> None:
    """A line over what follows."""
    console.print(f"\n{line}", style="bold")


@contextmanager
def stage(line: str) -> Iterator[None]:
    """A stage: its title before, the seconds it took after."""
    title(line)
    started = time.monotonic()
    yield
    say(f"  took {time.monotonic() - started:.0f} s")


def command(arguments: Sequence[str]) -> None:
    """A command line of `atlas`, as one would type it."""
    console.print(f"$ atlas {' '.join(arguments)}", soft_wrap=True)


def output(text: str) -> None:
    """What a command wrote."""
    console.print(Text.from_ansi(text.rstrip("\n")), soft_wrap=True)


@contextmanager
def progress(name: str, steps: int) -> Iterator[Advance]:
    """A bar with the time left, on a terminal; elsewhere a line at every quarter.

    The yielded function takes the steps done so far and a word on how it goes.
    """
    if not console.is_terminal:
        yield _quarters(name, steps)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[detail]}"),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=steps, detail="")
        yield lambda done, detail: bar.update(task, completed=done, detail=detail)


def _quarters(name: str, steps: int) -> Advance:
    said = 0

    def advance(done: int, detail: str) -> None:
        nonlocal said
        if 4 * done // steps > said:
            said = 4 * done // steps
            say(f"  {name}: {done}/{steps} {detail}")

    return advance


def base_table(facts: Mapping[str, Any]) -> Table:
    """Is the base's load balanced? Held-out text, per routed layer."""
    table = Table(title="Load of the base on held-out text", title_justify="left")
    for column in ("layer", "load CV", "dead experts", "least used gets", "most used gets"):
        table.add_column(column, justify="right")
    for row in facts["load"]:
        table.add_row(
            str(row["layer"]),
            f"{row['cv']:.2f}",
            f"{row['dead']} of {row['experts']}",
            f"{row['least']:.2f} of its share",
            f"{row['most']:.2f}",
        )
    return table


def hints(lines: Sequence[tuple[str, str]]) -> None:
    """Commands to try next."""
    title("Try next")
    width = max(len(line) for line, _ in lines)
    for line, what in lines:
        say(f"  {line:<{width}}  # {what}")


def wrote(path: Path, what: str) -> None:
    """Say what was written where."""
    say(f"  wrote {path}: {what}")
