"""`atlas diff`: two receipts side by side. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moe_atlas.receipt.compare import VerifiedReceipt


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="The receipt to start from (A).")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The receipt to hold against it (B).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what moved between two receipts, and whether the intervals say so.

    Both are verified first. Exits with 0 once they are compared, whatever moved, and 5 when one does not verify.

    Example: atlas diff monday.json tuesday.json
    """
    from moe_atlas.receipt.compare import compare
    from moe_atlas.report.opening import opened

    sides = _side(first), _side(second)
    for side, path in zip(sides, (first, second), strict=True):
        opened(side.receipt, path)
    found = compare(*sides)
    if as_json:
        typer.echo(json.dumps(found.describe(), indent=2))
        return
    from rich.console import Group

    from moe_atlas.report.console.screen import screen
    from moe_atlas.report.diff import sections

    screen().print(Group(*sections(found, first, second)))


def _side(path: Path) -> VerifiedReceipt:
    from moe_atlas.receipt.compare import VerifiedReceipt
    from moe_atlas.results import Receipt

    receipt = Receipt.load(path)
    return VerifiedReceipt(receipt.body, receipt.windows())
