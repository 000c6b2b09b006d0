"""`atlas register`: fix a probe set before the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from moe_atlas.cli import options as o
from moe_atlas.ledger.recording import registration_body
from moe_atlas.ledger.store import DEFAULT_RUNS, Ledger
from moe_atlas.probes.lock import Lock
from moe_atlas.probes.policy import ABSOLUTE_BUDGETS, CHANNELS
from moe_atlas.probes.registration import register as register_probes
from moe_atlas.text import shown


def register(
    probes: Annotated[Path, typer.Argument(metavar="FILE", help="The probe file.")],
    policy_from: o.PolicyFrom = None,
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

    Example: atlas register probes.yaml
    """
    ledger = None if run is None else Ledger(run, runs)
    lock = register_probes(probes, force, policy_from=policy_from)
    if ledger is not None:
        ledger.append("registration", registration_body(lock))
    typer.echo(json.dumps(_facts(lock)) if as_json else _sentence(lock))


def _facts(lock: Lock) -> dict[str, object]:
    domains = [
        {
            "name": domain["name"],
            "role": domain["role"],
            "windows": len(domain["windows"]),
            "documents": len({window["document"] for window in domain["windows"]}),
        }
        for domain in lock.body["domains"]
    ]
    return {
        "lock": str(lock.path),
        "lock_sha256": lock.digest,
        "policy_sha256": lock.policy_sha256,
        "policy_from": lock.policy_from,
        "stage": lock.body["stage"],
        "registered_at": lock.registered_at,
        "predecessor": lock.predecessor,
        "domains": domains,
    }


def _sentence(lock: Lock) -> str:
    lines = [f"registered {shown(str(lock.path))} at {lock.registered_at}, stage {lock.body['stage']}"]
    lines += [
        f"  {shown(d['name'])} ({d['role']}): {len(d['windows'])} windows" for d in lock.body["domains"]
    ]
    lines.append(f"  lock sha256 {lock.digest}")
    if lock.policy_from:
        lines.append(f"  policy of   {shown(lock.policy_from['name'])}, sha256 {lock.policy_from['sha256']}")
    if lock.predecessor:
        lines.append(f"  replaces    {lock.predecessor['sha256']} of {lock.predecessor['registered_at']}")
    return "\n".join(lines + _warnings(lock.body["probes"]["policy"]))


def _warnings(policy: dict[str, Any]) -> list[str]:
    """What this registration leaves open; such an audit measures, but cannot pass."""
    budgets = [policy["rewrite"][key] for key in (*CHANNELS, *ABSOLUTE_BUDGETS, "refinement")]
    lines = []
    if not any(budgets):
        lines.append("  note: no rewrite budget is set, so the atlas can never count as preserved")
    if policy["damage"]["nll"] is None:
        lines.append("  note: no damage margin is set, so a base domain can never count as undamaged")
    return lines
