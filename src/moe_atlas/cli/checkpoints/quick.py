"""`atlas quick`: a look at a pair, without configuration."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moe_atlas.cli.common import options as o
from moe_atlas.errors import Exit
from moe_atlas.look.request import DOCUMENTS, MARGIN


def quick(
    base: o.Base,
    tuned: o.Tuned,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Documents of your own, not the standard library's."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="tokenizer.json, or bytes, not the one beside BASE."),
    ] = None,
    documents: Annotated[
        int, typer.Option(min=1, metavar="INTEGER", help="Most documents of a domain.")
    ] = DOCUMENTS,
    seed: Annotated[int, typer.Option(min=0, metavar="INTEGER", help="Chooses the documents.")] = 0,
    margin: Annotated[
        float, typer.Option(min=0.0, metavar="NATS", help="Rise of a domain's loss that is a finding.")
    ] = MARGIN,
    receipt: o.ReceiptPath = Path("quick.receipt.json"),
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 on a finding.")] = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    threads: o.Threads = None,
    memory: o.Memory = None,
    accept: o.Accept = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> int:
    """Look at a pair without configuration: damage, drift, weights. It judges nothing, and its receipt never passes.

    Exit codes: 0 looked, whatever was found; with --exit-code 1 if an expert, a tensor or an output is broken, or if
    the loss of a domain certainly rose by more than --margin nats a token; 2, 4, 5, 6 as atlas audit.

    Example: atlas quick base.ckpt tuned.ckpt
    """
    from moe_atlas.api import quick as look
    from moe_atlas.options import AuditOptions
    from moe_atlas.report.console.progress import watching

    silent = quiet or as_json
    with watching(quiet=silent) as watcher:
        options = AuditOptions(dtype=dtype, device=device, threads=threads, progress=watcher)
        found = look(
            base,
            tuned,
            data=data,
            tokenizer=tokenizer,
            documents=documents,
            seed=seed,
            margin=margin,
            receipt=receipt,
            force=force,
            announce=None if silent else announce,
            options=o.audit_options(options, memory, accept),
        )
    code = Exit.FAIL if exit_code and found.body["look"]["changed"] else Exit.PASS
    if as_json:
        typer.echo(json.dumps(_object(found.body, receipt, code), indent=2))
    elif not quiet:
        with contextlib.suppress(OSError, SystemExit):  # a reader that left does not change what was found
            o.draw(found.body, receipt, [])
    return int(code)


def announce(found: dict[str, Any]) -> None:
    """Say on standard error what a long look will take, and what would make it shorter."""
    from moe_atlas.text import duration

    seconds = sum(part["seconds"]["total"] for part in (found, found.get("yardstick")) if part)
    words = f"atlas: this look will take about {duration(seconds)}; --documents N reads fewer than {DOCUMENTS} a domain"
    print(words, file=sys.stderr, flush=True)


def _object(receipt: dict[str, Any], path: Path, code: Exit) -> dict[str, Any]:
    """Return the summary of every receipt, with the exit code of this command and what was found."""
    from moe_atlas.report.opening import opened
    from moe_atlas.report.summary import summary

    return summary(opened(receipt, path), path) | {"exit_code": int(code), "look": receipt["look"]}
