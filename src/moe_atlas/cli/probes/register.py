"""`atlas register`: fix a probe set before the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from moe_atlas.cli.common import options as o
from moe_atlas.ledger.store import DEFAULT_RUNS, Ledger


def register(
    probes: Annotated[Path, typer.Argument(metavar="FILE", help="The probe file.")],
    policy_from: o.PolicyFrom = None,
    changes_from: o.ChangesFrom = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a lock that differs; the new one names it.")
    ] = False,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Record the registration in this run's ledger.")
    ] = None,
    runs: o.Runs = DEFAULT_RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bind windows, tokenizer, policy and stage in a lock beside the probe file.

    A lock names the registration it follows: the lock it replaces, or where there is none the latest one known to the
    runs' ledgers and to receipts beside the probe file.

    Example: atlas register probes.yaml
    """
    from moe_atlas.ledger.predecessors import Predecessors
    from moe_atlas.ledger.recording import registration_body
    from moe_atlas.probes.registration import register as register_probes
    from moe_atlas.report.registration.bound import facts, sentence
    from moe_atlas.report.registration.forecast import changes_of, forecast, forecast_lines

    changes = None if changes_from is None else changes_of(changes_from)

    ledger = None if run is None else Ledger(run, runs)
    earlier = Predecessors(probes, runs, run)
    lock = register_probes(probes, force, policy_from=policy_from, earlier=earlier)
    if ledger is not None:
        ledger.append("registration", registration_body(lock))
    power = forecast(lock, changes)
    found = (
        facts(lock)
        | {"power": power}
        | {"predecessor_named_by": earlier.where, "unread_ledgers": earlier.unread}
    )
    typer.echo(json.dumps(found) if as_json else sentence(lock, earlier, list(forecast_lines(power))))
