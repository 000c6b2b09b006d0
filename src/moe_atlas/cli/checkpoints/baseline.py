"""`atlas baseline`: record the state of one checkpoint as a new reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_atlas.cli.common import options as o
from moe_atlas.cli.common.place import place
from moe_atlas.ledger.store import DEFAULT_RUNS


def baseline(
    checkpoint: o.Checkpoint,
    probe: o.Probe,
    like: o.Like = None,
    policy_from: o.PolicyFrom = None,
    receipt: o.ReceiptPath = Path("baseline.json"),
    dtype: o.Dtype = "auto",
    router: o.Router = "float32",
    device: o.Device = "cpu",
    threads: o.Threads = None,
    memory: o.Memory = None,
    noise_floor: o.NoiseFloor = None,
    accept: o.Accept = None,
    previous: Annotated[
        Path | None,
        typer.Option(metavar="RECEIPT", help="Earlier receipt of the run: are these still the same tensors?"),
    ] = None,
    run: o.Run = None,
    runs: o.Runs = DEFAULT_RUNS,
    step: o.Step = None,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why a baseline is taken anew, such as 'node failure'.")
    ] = None,
    resume: o.Resume = False,
    force: o.Force = False,
    formats: o.Format = None,
    github: o.Github = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> int:
    """Record the state of the atlas at this point; it licenses no claim of preservation.

    Example: atlas baseline resumed.ckpt --probe probes.yaml --run sft-640 --reason "node failure"
    """
    from moe_atlas.api import baseline as run_baseline
    from moe_atlas.ledger.recording import Recording
    from moe_atlas.options import AuditOptions
    from moe_atlas.probes.lock import lock_path
    from moe_atlas.report.console.progress import watching

    inputs = (checkpoint, like, probe, lock_path(probe), policy_from, previous)
    wanted = o.reports(formats, as_json=as_json, github=github, force=force, receipt=receipt, inputs=inputs)
    with o.reporting(wanted), watching(quiet=quiet) as watcher:
        options = AuditOptions(
            dtype=dtype,
            router=router,
            device=device,
            threads=threads,
            noise_floor=noise_floor,
            policy_from=policy_from,
            like=like,
            place=place(),
            progress=watcher,
        )
        result = run_baseline(
            checkpoint,
            probe,
            receipt=receipt,
            force=force,
            resume=resume,
            previous=previous,
            recording=Recording(run, runs, step, reason),
            options=o.audit_options(options, memory, accept),
        )
    return o.emit(result, wanted, quiet=quiet)
