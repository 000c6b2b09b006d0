"""`atlas gate`: an exit code for a pipeline at this point of a run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from moe_atlas.cli.runs.history import Receipts, Run, Runs
from moe_atlas.ledger.store import DEFAULT_RUNS, Ledger
from moe_atlas.text import shown


def gate(
    run: Run,
    runs: Runs = DEFAULT_RUNS,
    receipts: Receipts = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing; the exit code tells.")] = False,
) -> int:
    """Answer for a run with an exit code, after the escalation rule.

    Exit codes: 0 the last gate passed and no episode is open; 1 intervene; 3 neither (nothing compared yet, a
    task that is not reached, a bad gate that is not yet persistent, a first pass after a bad one); 5 the ledger does
    not verify.

    Example: atlas gate sft-640 && promote
    """
    from moe_atlas.ledger.history import read_history, require_settled
    from moe_atlas.verdict.qualifications import in_words

    ledger = Ledger(run, runs)
    found = read_history(ledger, receipts or ())
    require_settled(found, shown(str(ledger.path)))
    facts = found.describe()
    if as_json:
        typer.echo(json.dumps({key: value for key, value in facts.items() if key != "entries"}))
    elif not quiet:
        why = f" ({facts['not_counted']})" if facts["not_counted"] else ""
        state = in_words(f"{facts['colour'] or 'WAITING'} {facts['state']}", facts["qualified"])
        typer.echo(f"{state}: {facts['action']}{why}")
    return int(found.exit_code)
