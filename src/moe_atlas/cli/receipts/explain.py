"""`atlas explain`: which documents and tokens a pair lost on, and where their routes went. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_atlas.cli.common import options as o
from moe_atlas.errors import UsageError
from moe_atlas.text import shown

if TYPE_CHECKING:
    from moe_atlas.explanation.explain import Explanation
    from moe_atlas.report.formats.outputs import Outputs


def explain(
    receipt: o.Receipt,
    probe: Annotated[
        Path,
        typer.Option("--probe", metavar="FILE", help="The probe file of the audit, its documents at hand."),
    ],
    policy_from: o.PolicyFrom = None,
    worst: Annotated[
        int, typer.Option(min=1, max=100, metavar="INTEGER", help="Documents to name in each domain.")
    ] = 5,
    output: Annotated[
        Path | None, typer.Option("--output", "--out", "-o", metavar="FILE", help="Page to write, .html.")
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option("--format", metavar="KIND=FILE", help="html, or with a file: html=page.html."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a page that exists.")] = False,
) -> None:
    """Show which documents and tokens a pair lost on, and where their routes went.

    Shows text of the documents, in the terminal or on a page: do not publish it unread. Tokens need an audit with
    --tokens. Exits with 0 once it is shown, whatever the verdict.

    Example: atlas explain receipt.json --probe probes.yaml -o explained.html
    """
    from moe_atlas.explanation.evidence import load_evidence
    from moe_atlas.explanation.explain import explain as make

    wanted = _outputs(receipt, probe, policy_from, output, formats, force=force)
    evidence = load_evidence(receipt, probe, policy_from)
    _show(make(evidence, receipt, worst, _length(html=bool(wanted.wanted))), wanted)


def _outputs(
    receipt: Path,
    probe: Path,
    policy_from: Path | None,
    output: Path | None,
    formats: str | None,
    *,
    force: bool,
) -> Outputs:
    """Return the page that was asked for, checked before the work.

    Raises:
        UsageError: E_FORMAT for another format, or two pages; E_EXISTS, E_NO_FOLDER or E_OVER_INPUT.
    """
    from moe_atlas.probes.lock import lock_path
    from moe_atlas.receipt.files import own_paths
    from moe_atlas.report.formats.outputs import outputs

    inputs = (probe, lock_path(probe), policy_from)
    paths = () if output is None else (output,)
    names = () if formats is None else (formats,)
    wanted = outputs(names, paths, force=force, reserved=own_paths(receipt), inputs=inputs)
    if len(wanted.wanted) > 1 or any(one.format != "html" for one in wanted.wanted):
        problem = "an explanation is shown in the terminal or written as one HTML page"
        raise UsageError("E_FORMAT", "--format", problem, "give --output with a name that ends in .html")
    return wanted


def _length(*, html: bool) -> int:
    """Return the number of tokens of a passage."""
    if html:
        from moe_atlas.explanation.html import LENGTH

        return LENGTH
    from moe_atlas.explanation import terminal

    return terminal.LENGTH


def _show(explanation: Explanation, wanted: Outputs) -> None:
    if not wanted.wanted:
        from moe_atlas.explanation.terminal import render
        from moe_atlas.report.console.screen import screen

        render(explanation, screen())
        return
    from moe_atlas.explanation.html import page
    from moe_atlas.explanation.sentences import TEXT_INSIDE

    output = wanted.wanted[0]
    _, place = output.report
    place.put(page(explanation))
    if output.path is not None:
        typer.echo(f"wrote {shown(str(output.path))} from {shown(str(explanation.path))}. {TEXT_INSIDE}")
