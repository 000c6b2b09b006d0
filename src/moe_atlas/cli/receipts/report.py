"""`atlas report`: a receipt for people and for pipelines. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_atlas.cli.common import options as o


def report(
    receipt: o.Receipt,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="File for .html, .md, .xml (JUnit) or .json; repeatable."
        ),
    ] = None,
    formats: o.Format = None,
    github: o.Github = False,
    force: Annotated[bool, typer.Option("--force", help="Replace reports that exist.")] = False,
    quiet: o.Quiet = False,
) -> None:
    """Explain a receipt: in the terminal, or as HTML, Markdown, JUnit and JSON.

    The receipt is verified first, and refused with exit code 5 when it does not re-derive. Exits with 0 once the
    reports are written, whatever the verdict; atlas verify answers with the verdict.

    Example: atlas report receipt.json -o report.html
    """
    from moe_atlas.receipt.files import own_paths
    from moe_atlas.receipt.verify import intact_receipt
    from moe_atlas.report.formats.outputs import outputs
    from moe_atlas.text import shown

    reserved = own_paths(receipt)
    wanted = outputs(formats or (), output or (), github_actions=github, force=force, reserved=reserved)
    with o.reporting(wanted):
        body = intact_receipt(receipt)
    written = wanted.write(body, receipt)
    if quiet or wanted.on_stdout:
        return
    if not wanted.wanted:
        o.draw(body, receipt, written)
    for path in written:
        typer.echo(f"wrote {shown(str(path))} from {shown(str(receipt))}")
