"""What people see: what is happening, how long it will take, what was written where."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from moe_atlas.text import number
from scripts.demo.policy import Budget

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
Advance = Callable[[int, str], None]


def say(line: str) -> None:
    """One line of plain text."""
    console.print(line)


def title(line: str) -> None:
    """The line over a stage."""
    console.print(f"\n{line}", style="bold")


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


def budget_table(budgets: Mapping[str, Budget]) -> Table:
    """Where every rewrite budget comes from."""
    table = Table(title="Rewrite budgets, from the reference tunes alone", title_justify="left")
    for column in ("budget", "references", "99 % bound for one more", "budget (2 x bound)"):
        table.add_column(column, justify="left" if column == "budget" else "right")
    for key, found in budgets.items():
        low, high = min(found.references), max(found.references)
        table.add_row(key, f"{number(low)} to {number(high)}", number(found.bound), number(found.value))
    return table


def hints(lines: Sequence[tuple[str, str]]) -> None:
    """Commands to try next."""
    title("Try next")
    width = max(len(command) for command, _ in lines)
    for command, what in lines:
        say(f"  {command:<{width}}  # {what}")


def wrote(path: Path, what: str) -> None:
    """Say what was written where."""
    say(f"  wrote {path}: {what}")
