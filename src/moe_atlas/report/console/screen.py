"""What fits a terminal: its width, and tables that give up columns rather than cut through them."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

PIPED = 140  # columns where standard output is no terminal
UNBOUNDED = 10_000


def screen() -> Console:
    """Standard output, which shows everything as it is written."""
    return Console(width=None if sys.stdout.isatty() else PIPED, highlight=False, markup=False)


@dataclass(frozen=True)
class Fitted:
    """A table that leaves out columns where there is no room for all, and says which.

    Attributes:
        table: with every column.
        expendable: headers in the order in which they go.
    """

    table: Table
    expendable: tuple[str, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left_out = []
        for name in self.expendable:
            if _width(self.table, console, options) <= options.max_width:
                break
            self.table.columns = [column for column in self.table.columns if column.header != name]
            left_out.append(name)
        yield self.table
        if left_out:
            yield Text(f"left out, for want of room: {', '.join(left_out)}", style="dim")


def _width(table: Table, console: Console, options: ConsoleOptions) -> int:
    """Columns of a terminal that a table would take if it could."""
    return Measurement.get(console, options.update(max_width=UNBOUNDED), table).maximum
