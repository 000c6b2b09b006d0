"""`atlas plan`: predict bytes, operations, memory and time of an audit without running it."""

from __future__ import annotations

import json
from typing import Any

import typer

from moe_atlas.cli.common import options as o
from moe_atlas.text import duration, size


def plan(
    base: o.Base,
    tuned: o.Tuned,
    probe: o.Probe,
    policy_from: o.PolicyFrom = None,
    changes_from: o.ChangesFrom = None,
    dtype: o.Dtype = "auto",
    threads: o.Threads = None,
    memory: o.Memory = None,
    yardstick: o.Yardstick = False,
    tokens: o.Tokens = False,
    accept: o.Accept = None,
    adapter_layout: o.AdapterLayout = None,
    as_json: o.AsJson = False,
) -> None:
    """Say what an audit would cost on this machine's CPU: bytes, operations, memory, seconds; and what it can decide.

    Reads headers, tries the machine for a few seconds, writes nothing.

    Example: atlas plan base.ckpt tuned.ckpt --probe probes.yaml
    """
    from moe_atlas.auditing.cost.machine import threads as pinned
    from moe_atlas.auditing.plan import plan as make
    from moe_atlas.options import AuditOptions
    from moe_atlas.probes.lock import lock_path, read_lock
    from moe_atlas.report.registration.forecast import changes_of, forecast

    options = AuditOptions(
        dtype=dtype,
        yardstick=yardstick,
        tokens=tokens,
        policy_from=policy_from,
        adapter_layout=o.layouts(adapter_layout),
    )
    options = o.audit_options(options, memory, accept)
    changes = None if changes_from is None else changes_of(changes_from)
    with pinned(threads):
        found = make(base, tuned, probe, options)
    found["power"] = forecast(read_lock(lock_path(probe)), changes)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        draw(found)


def draw(found: dict[str, Any]) -> None:
    """Print a short table."""
    from rich.console import Console
    from rich.table import Table

    from moe_atlas.report.registration.forecast import forecast_lines

    tokens, read, flops, speed = (found[key] for key in ("tokens", "bytes", "flops", "rates"))
    passes = "once" if found["passes"] == 1 else f"the experts {found['passes']} times"
    trial = f"{speed['flops'] / 1e9:.0f} GFLOP/s, {size(speed['bytes'])}/s read and hashed"
    table = Table(show_header=False)
    rows = [
        ("tokens", f"{tokens['all']}, of which {tokens['measured']} measured"),
        ("read", f"{size(read['base'])} + {size(read['tuned'])}, {passes}"),
        ("computed", f"{flops['total'] / 1e12:.3g} TFLOP in {found['dtype']}"),
        *((f"  {part}", f"{n / 1e12:.3g}") for part, n in flops.items() if n and part != "total"),
        ("memory", f"{size(found['memory']['peak'])}, at least {size(found['memory']['minimum'])}"),
        *(("token data", f"{size(n['least'])} to {size(n['most'])}") for n in [found.get("token_data")] if n),
        ("this machine", f"{trial}, {found['threads']} threads"),
        ("time", f"about {duration(found['seconds']['total'])}"),
        *((f"  {part}", duration(s)) for part, s in found["seconds"].items() if part != "total"),
        *_yardstick(found.get("yardstick")),
    ]
    for name, value in rows:
        table.add_row(name, value)
    console = Console(highlight=False, markup=False)
    console.print(table)
    for line in forecast_lines(found["power"]):
        console.print(line, soft_wrap=True)


def _yardstick(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the row of the base's audit against its 4-bit copy, if it was asked for."""
    if found is None:
        return []
    cost = f"about {duration(found['seconds']['total'])} more, {size(found['bytes']['total'])} read"
    return [("yardstick", f"{cost}; nothing if the cache has it")]
