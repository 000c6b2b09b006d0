"""`atlas families`: which architectures and formats are read, and what each was tested against."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import typer

from moe_atlas.cli.common import options as o


def families(as_json: o.AsJson = False) -> None:
    """List the supported families and formats, and what each was tested against.

    Example: atlas families
    """
    found = facts()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        draw(found)


def facts() -> dict[str, Any]:
    """Return the table that is generated from the families' own specs."""
    text = resources.files("moe_atlas.families").joinpath("table.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def draw(found: dict[str, Any]) -> None:
    """Print one row per family, then the formats."""
    from rich.table import Table

    from moe_atlas.report.console.screen import Fitted, screen

    columns = ("model_type", "attention", "router", "experts", "tested")
    table = Table(*columns, title=f"{len(found['families'])} families", title_justify="left")
    for row in found["families"]:
        table.add_row(*(row[column] for column in columns))
    console = screen()
    console.print(Fitted(table, ("experts", "attention", "router")))
    console.print("\nformats of stored tensors, in every family:")
    for row in found["formats"]:
        console.print(f"  {row['format']}: {row['tensors']}")
