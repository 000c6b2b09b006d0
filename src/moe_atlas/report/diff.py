"""Two receipts in a terminal, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from moe_atlas.receipt.compare import HIGHER, LOWER, SAME, UNCLEAR, UNDEFINED, Change, Comparison
from moe_atlas.report.console.screen import Fitted
from moe_atlas.report.words import PREDICATES, VERDICTS
from moe_atlas.text import interval, number, shown
from moe_atlas.verdict.qualifications import in_words

MARKS = {HIGHER: "↑ higher", LOWER: "↓ lower", SAME: "= same", UNCLEAR: "? unclear", UNDEFINED: "– undefined"}
STYLES = {HIGHER: "yellow", LOWER: "cyan", SAME: "dim", UNCLEAR: "", UNDEFINED: "dim"}


def sections(found: Comparison, first: Path, second: Path) -> Iterator[RenderableType]:
    """The parts of the comparison, in reading order."""
    sides = zip("AB", (first, second), found.verdicts, found.qualified, strict=True)
    for letter, path, verdict, qualified in sides:
        yield Text(f"{letter}: {in_words(VERDICTS[verdict], qualified)}  {shown(str(path))}")
    for caveat in found.caveats:
        yield Text(f"caveat: {caveat}", style="yellow")
    yield outcomes(found)
    yield changes(found)
    moved = sum(change.says in (HIGHER, LOWER) for change in found.changes)
    how = (
        "paired by window, bounds hold over all layers of a figure together"
        if found.paired
        else "by disjoint intervals"
    )
    yield Text(f"{moved} of {len(found.changes)} figures moved ({how})")


def outcomes(found: Comparison) -> Table:
    """The predicates of both."""
    table = Table(title="Predicates", title_justify="left", expand=False)
    for column in ("predicate", "A", "B"):
        table.add_column(column)
    for name, one, other in found.predicates:
        table.add_row(PREDICATES[name], one, Text(other, style="" if one == other else "bold"))
    return table


def changes(found: Comparison) -> Fitted:
    """Every figure in both, and the change."""
    table = Table(title="Protected layers and domains", title_justify="left", expand=False)
    for column in ("figure", "where"):
        table.add_column(column, no_wrap=True)
    for column in ("A", "B", "B - A"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("moved?")
    before = None
    for change in found.changes:
        if before not in (None, change.figure):
            table.add_section()
        before = change.figure
        table.add_row(*_row(change))
    return Fitted(table, ("A", "B"))


def _row(change: Change) -> list[str | Text]:
    values = [number(side.get("estimate")) for side in (change.first, change.second)]
    difference = interval(change.difference) if change.difference is not None else "–"
    says = Text(MARKS[change.says], style=STYLES[change.says])
    return [change.figure.replace("_", " "), shown(change.where), *values, difference, says]
