"""`atlas calibrate`: derive budgets from pairs known to be healthy. Torch-free."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moe_atlas.calibration.bounds import FEWEST
from moe_atlas.errors import ResourceExhausted
from moe_atlas.receipt.files import require_apart, require_free, window_path
from moe_atlas.system.atomic_write import write_atomic
from moe_atlas.text import shown

LEVEL, FACTOR = 0.99, 2.0


class Acceptable(StrEnum):
    """What `--accept` may name: the keys of `moe_atlas.calibration.healthy.ACCEPTABLE`, which says what they mean."""

    FAILED = "failed"
    ONE_RUN = "one-run"


def calibrate(
    healthy: Annotated[
        list[Path],
        typer.Option(
            "--healthy",
            metavar="RECEIPT",
            help=f"Receipt of a tune one would promote, or a folder; at least {FEWEST}.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The policy file to write.")],
    damaged: Annotated[
        list[Path] | None,
        typer.Option(
            "--damaged", metavar="RECEIPT", help="Receipt of a tune one would not promote, or a folder."
        ),
    ] = None,
    level: Annotated[
        float,
        typer.Option(min=0.5, max=0.9999, metavar="NUMBER", help="One-sided level of the prediction bound."),
    ] = LEVEL,
    factor: Annotated[
        float, typer.Option(min=1.0, metavar="NUMBER", help="What the bound is multiplied by.")
    ] = FACTOR,
    accept: Annotated[
        list[Acceptable] | None,
        typer.Option("--accept", help="count as healthy what is refused otherwise, on record; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Set budgets as prediction bounds over healthy pairs, and say what they would have caught.

    All receipts must be of one family, k and probe set. The file says where each number comes from.

    Example: atlas calibrate --healthy receipts/good --damaged receipts/bad --out policy.yaml
    """
    from moe_atlas.calibration.budgets import calibrate as set_budgets
    from moe_atlas.calibration.pairs import read_pair, receipt_paths, require_one_fate, require_one_setting
    from moe_atlas.calibration.policy_text import policy_file, table

    require_free(out, force)
    paths = receipt_paths(healthy), receipt_paths(damaged or ())
    require_apart([out], [beside for path in (*paths[0], *paths[1]) for beside in (path, window_path(path))])
    good, bad = ([read_pair(path) for path in some] for some in paths)
    calibration = set_budgets(good, level, factor, [name.value for name in accept or ()])
    require_one_setting([*good, *bad])
    require_one_fate(good, bad)
    try:
        write_atomic(out, policy_file(calibration, bad, out.name).encode("utf-8"))
    except OSError as error:
        raise ResourceExhausted(
            "E_WRITE", shown(str(out)), f"cannot be written ({error.strerror})"
        ) from error
    for line in table(calibration, bad) if bad else ():
        typer.echo(line)
    typer.echo(
        f"wrote {shown(str(out))}: budgets from {len(good)} healthy pairs; "
        f"atlas register probes.yaml --policy-from {shown(str(out))}"
    )
