"""`atlas calibrate`: derive budgets from pairs known to be healthy, or a first draft from the base alone."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_atlas.calibration.bounds import FEWEST
from moe_atlas.cli.common import options as o
from moe_atlas.errors import ResourceExhausted, UsageError
from moe_atlas.receipt.files import own_paths, require_apart, require_free
from moe_atlas.system.atomic_write import write_atomic
from moe_atlas.text import shown

if TYPE_CHECKING:
    from moe_atlas.base_alone.ladder import Rung
    from moe_atlas.calibration.from_base import Base, Draft
    from moe_atlas.options import AuditOptions

LEVEL, FACTOR, COPIES = 0.99, 2.0, 2.5


class Acceptable(StrEnum):
    """What `--accept` may name: the keys of `moe_atlas.calibration.healthy.ACCEPTABLE`, which says what they mean."""

    FAILED = "failed"
    ONE_RUN = "one-run"


def calibrate(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The policy file to write.")],
    healthy: Annotated[
        list[Path] | None,
        typer.Option(
            "--healthy",
            metavar="RECEIPT",
            help=f"Receipt of a tune one would promote, or a folder; at least {FEWEST}.",
        ),
    ] = None,
    damaged: Annotated[
        list[Path] | None,
        typer.Option(
            "--damaged", metavar="RECEIPT", help="Receipt of a tune one would not promote, or a folder."
        ),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            max=0.9999,
            metavar="NUMBER",
            help=f"One-sided level of the prediction bound, {LEVEL:g} by default.",
        ),
    ] = None,
    factor: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            metavar="NUMBER",
            help=f"Of the bound, {FACTOR:g} by default; of the 4-bit copy, {COPIES:g}.",
        ),
    ] = None,
    accept: Annotated[
        list[Acceptable] | None,
        typer.Option("--accept", help="count as healthy what is refused otherwise, on record; repeatable."),
    ] = None,
    from_base: Annotated[
        Path | None,
        typer.Option("--from-base", metavar="BASE", help="Instead: PROVISIONAL budgets from a base alone."),
    ] = None,
    probe: Annotated[
        Path | None, typer.Option("--probe", metavar="FILE", help="With --from-base: registered probe file.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="With --from-base: your margin for a domain's mean rise of NLL."),
    ] = None,
    ladder: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="With --from-base: measure noise on the base, too, object by object; a chart, FILE.svg, goes beside.",
        ),
    ] = None,
    policy_from: o.PolicyFrom = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    threads: o.Threads = None,
    memory: o.Memory = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Set budgets as prediction bounds over healthy pairs, and say what they would have caught.

    All receipts must be of one family, k and probe set. The file says where each number comes from.

    Example: atlas calibrate --healthy receipts/good --damaged receipts/bad --out policy.yaml
    """
    require_free(out, force)
    if from_base is None:
        measuring: dict[str, object] = {"--probe": probe, "--margin": margin, "--ladder": ladder}
        measuring |= {"--policy-from": policy_from, "--threads": threads, "--memory": memory}
        measuring |= {"--dtype": dtype != "auto", "--device": device != "cpu"}
        _require_none(measuring, "goes with --from-base")
        if not healthy:
            step = "give --healthy receipts, or --from-base BASE for provisional budgets"
            raise UsageError("E_OPTIONS", "--healthy", "is not given, and nothing else sets budgets", step)
        accepted = [name.value for name in accept or ()]
        _from_pairs(healthy, damaged or [], out, level or LEVEL, factor or FACTOR, accepted)
        return
    _require_none(
        {"--healthy": healthy, "--damaged": damaged, "--accept": accept, "--level": level},
        "does not go with --from-base",
    )
    if probe is None or margin is None:
        problem = "needs --probe, a registered probe file, and --margin, your own number"
        raise UsageError(
            "E_OPTIONS", "--from-base", problem, "a base does not say how much forgetting you accept"
        )
    ladders = _ladder_files(ladder, out, force)
    from moe_atlas.options import AuditOptions

    asked = AuditOptions(dtype=dtype, device=device, threads=threads, policy_from=policy_from)
    options = o.audit_options(asked, memory, None)
    _from_base(from_base, probe, out, margin, factor or COPIES, ladders, options)


def _require_none(given: dict[str, object], problem: str) -> None:
    for name, value in given.items():
        if value:
            raise UsageError("E_OPTIONS", name, problem, "see atlas calibrate --help")


def _from_pairs(
    healthy: Sequence[Path],
    damaged: Sequence[Path],
    out: Path,
    level: float,
    factor: float,
    accepted: Sequence[str],
) -> None:
    from moe_atlas.calibration.budgets import calibrate as set_budgets
    from moe_atlas.calibration.pairs import read_pair, receipt_paths, require_one_fate, require_one_setting
    from moe_atlas.calibration.policy_text import policy_file, table

    paths = receipt_paths(healthy), receipt_paths(damaged)
    require_apart([out], [beside for path in (*paths[0], *paths[1]) for beside in own_paths(path)])
    good, bad = ([read_pair(path) for path in some] for some in paths)
    calibration = set_budgets(good, level, factor, accepted)
    require_one_setting([*good, *bad])
    require_one_fate(good, bad)
    _write(out, policy_file(calibration, bad, out.name))
    for line in table(calibration, bad) if bad else ():
        typer.echo(line)
    typer.echo(
        f"wrote {shown(str(out))}: budgets from {len(good)} healthy pairs; "
        f"atlas register probes.yaml --policy-from {shown(str(out))}"
    )


def _ladder_files(table: Path | None, out: Path, force: bool) -> tuple[Path, Path] | None:
    """Return the files of the ladders, table and chart; refuse names at which they cannot be written."""
    if table is None:
        return None
    if table.suffix != ".csv":
        problem = f"{shown(str(table))} does not end in .csv"
        raise UsageError("E_OPTIONS", "--ladder", problem, "the chart goes beside it, and ends in .svg")
    chart = table.with_suffix(".svg")
    for path in (table, chart):
        require_free(path, force)
    require_apart([out], [table, chart])
    return table, chart


def _from_base(
    path: Path,
    probe: Path,
    out: Path,
    margin: float,
    factor: float,
    ladders: tuple[Path, Path] | None,
    options: AuditOptions,
) -> None:
    from dataclasses import replace

    from moe_atlas.base_alone.base import open_base, yardstick_alone
    from moe_atlas.base_alone.ladder import climb
    from moe_atlas.calibration.from_base import Base, draft, require_margin
    from moe_atlas.calibration.provisional_text import costs_of_copy, provisional_file
    from moe_atlas.probes.lock import lock_path
    from moe_atlas.report.console.progress import watching

    require_margin(margin)
    require_apart([out, *(ladders or ())], [path, probe, lock_path(probe), options.policy_from])
    with watching(quiet=False) as watcher:
        options = replace(options, progress=watcher)
        base = open_base(path, probe, options)
        measured = Base(**yardstick_alone(base, options))
        made = draft(measured, margin, factor)
        rungs = climb(base, margin, options) if ladders else []
    if ladders:
        _write_ladders(rungs, ladders, measured, made)
    _write(out, provisional_file(measured, made, out.name))
    typer.echo(f"your margin: {margin:g} nats per token; a 4-bit copy of the base costs")
    for line in costs_of_copy(measured):
        typer.echo(f"  {line}")
    typer.echo(
        f"wrote {shown(str(out))}: PROVISIONAL budgets, {factor:g} × what that copy does\n"
        f"take the policy out of {shown(str(probe))}, because the new file has it, then: "
        f"atlas register --force {shown(str(probe))} --policy-from {shown(str(out))}"
    )


def _write_ladders(rungs: Sequence[Rung], files: tuple[Path, Path], measured: Base, made: Draft) -> None:
    from moe_atlas.base_alone.chart import chart
    from moe_atlas.base_alone.table import NOT_A_TUNE, csv_text, summary, table

    rows = table(rungs, measured.probe.protected_layers, made)
    drawn = chart(rows)
    _write(files[0], csv_text(rows))
    _write(files[1], drawn)
    typer.echo(
        "noise on one object of the base at a time (dose: standard deviation as a share of a tensor's RMS)"
    )
    for line in summary(rows):
        typer.echo(f"  {line}")
    typer.echo(f"wrote {shown(str(files[0]))} and {shown(str(files[1]))}: {NOT_A_TUNE}")


def _write(path: Path, content: str | bytes) -> None:
    try:
        write_atomic(path, content.encode("utf-8") if isinstance(content, str) else content)
    except OSError as error:
        raise ResourceExhausted(
            "E_WRITE", shown(str(path)), f"cannot be written ({error.strerror})"
        ) from error
