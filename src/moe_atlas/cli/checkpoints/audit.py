"""`atlas audit`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_atlas.cli.common import options as o
from moe_atlas.cli.common.place import place
from moe_atlas.ledger.store import DEFAULT_RUNS


def audit(
    base: o.Base,
    tuned: o.Tuned,
    probe: o.Probe,
    policy_from: o.PolicyFrom = None,
    receipt: o.ReceiptPath = Path("receipt.json"),
    dtype: o.Dtype = "auto",
    router: o.Router = "float32",
    device: o.Device = "cpu",
    threads: o.Threads = None,
    memory: o.Memory = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="RECEIPT", help="Baseline receipt: the handoff's reference."),
    ] = None,
    attempt: Annotated[
        list[Path] | None,
        typer.Option(metavar="RECEIPT", help="Receipt of another attempt; repeatable."),
    ] = None,
    noise_floor: o.NoiseFloor = None,
    yardstick: o.Yardstick = False,
    accept: o.Accept = None,
    adapter_as: o.AdapterAs = "merged",
    adapter_layout: o.AdapterLayout = None,
    chart_maps: Annotated[
        int,
        typer.Option(min=0, metavar="INTEGER", help="Pairs of experts to map (slow)."),
    ] = 0,
    tokens: o.Tokens = False,
    run: o.Run = None,
    runs: o.Runs = DEFAULT_RUNS,
    step: o.Step = None,
    resume: o.Resume = False,
    force: o.Force = False,
    formats: o.Format = None,
    github: o.Github = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> int:
    """Compare two checkpoints on a registered probe set and write a receipt.

    Exit codes: 0 pass, 1 fail, 2 usage, 3 inconclusive, 4 input refused, 5 input changed, 6 out of resources.

    Example: atlas audit base.ckpt tuned.ckpt --probe probes.yaml
    """
    from moe_atlas.api import audit as run_audit
    from moe_atlas.ledger.recording import Recording
    from moe_atlas.options import AuditOptions
    from moe_atlas.probes.lock import lock_path
    from moe_atlas.report.console.progress import watching

    inputs = (base, tuned, probe, lock_path(probe), policy_from, baseline, *(attempt or ()))
    wanted = o.reports(formats, as_json=as_json, github=github, force=force, receipt=receipt, inputs=inputs)
    with o.reporting(wanted), watching(quiet=quiet) as watcher:
        options = AuditOptions(
            dtype=dtype,
            router=router,
            device=device,
            threads=threads,
            noise_floor=noise_floor,
            yardstick=yardstick,
            chart_maps=chart_maps,
            tokens=tokens,
            baseline=baseline,
            attempts=tuple(attempt or ()),
            policy_from=policy_from,
            adapter_as=adapter_as,
            adapter_layout=o.layouts(adapter_layout),
            place=place(),
            progress=watcher,
        )
        result = run_audit(
            base,
            tuned,
            probe,
            receipt=receipt,
            force=force,
            resume=resume,
            recording=Recording(run, runs, step),
            options=o.audit_options(options, memory, accept),
        )
    return o.emit(result, wanted, quiet=quiet)
