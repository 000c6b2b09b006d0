"""Options that several commands share, and how a result leaves a command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moe_atlas.errors import Exit

Probe = Annotated[Path, typer.Option("--probe", help="Registered probe file.", show_default=False)]
PolicyFrom = Annotated[
    Path | None, typer.Option("--policy-from", help="Central policy file that governs the probe file.")
]
ReceiptPath = Annotated[Path, typer.Option("--receipt", help="Where the receipt goes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing receipt.")]
Dtype = Annotated[str, typer.Option(help="Matrix products in: auto (the checkpoint's), float32, bfloat16.")]
Router = Annotated[str, typer.Option(help="Routing in: float32 (exact), native (as a serving stack rounds).")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; recorded, bits depend on it.")]
Memory = Annotated[str | None, typer.Option(help="Most memory to use, such as 2GiB.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors; the exit code tells.")]

Run = Annotated[str | None, typer.Option("--run", help="Record the result in this run's ledger.")]
Runs = Annotated[Path, typer.Option("--runs", help="The folder that holds the runs.")]
Step = Annotated[int | None, typer.Option(min=0, help="Training step of the checkpoint, for the history.")]

VERDICT_EXIT = {"pass": Exit.PASS, "fail": Exit.FAIL, "inconclusive": Exit.INCONCLUSIVE}


EXECUTIONS = ("order", "float32", "bfloat16")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> Any:
    """The value, if it is allowed.

    Raises:
        typer.BadParameter: naming what is allowed.
    """
    if value not in allowed:
        raise typer.BadParameter(f"{name} must be one of {', '.join(allowed)}, found {value!r}")
    return value


def summary(receipt: dict[str, Any], path: Path, code: int) -> dict[str, Any]:
    """What a pipeline needs of a receipt."""
    return {
        "verdict": receipt["verdict"],
        "kind": receipt["kind"],
        "exit_code": code,
        "receipt": str(path),
        "receipt_sha256": receipt["evidence"]["receipt_sha256"],
        "predicates": {
            name: {"outcome": predicate["outcome"], "passed": predicate["passed"]}
            for name, predicate in receipt["predicates"].items()
        },
        "failed": [
            line
            for predicate in receipt["predicates"].values()
            for line in predicate["evidence"]
            if line["result"] in ("fail", "undetermined")
        ],
        "next_steps": receipt["next_steps"],
    }


def emit(receipt: dict[str, Any], path: Path, code: int, *, as_json: bool, quiet: bool) -> None:
    """Show a result; a reader that went away does not change what the receipt says."""
    try:
        if as_json:
            print(json.dumps(summary(receipt, path, code), indent=2), flush=True)
        elif not quiet:
            _draw(receipt, path)
    except OSError:
        pass


def _draw(receipt: dict[str, Any], path: Path) -> None:
    from rich.console import Console

    from moe_atlas.report.terminal import render

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, markup=False)
    render(receipt, console)
    digest = receipt["evidence"]["receipt_sha256"][:16]
    console.print(
        f"receipt: {path} (sha256 {digest}…), windows beside it; check it with: atlas verify {path}"
    )
