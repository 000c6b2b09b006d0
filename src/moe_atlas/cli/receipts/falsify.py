"""`atlas falsify`: test the programme's predictions on many receipts. Torch-free."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moe_atlas.falsification.statements import Statement


def falsify(
    receipts: Annotated[
        list[Path], typer.Argument(metavar="RECEIPT", help="Receipts of audits, or folders of them.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask whether the atlas says more about forgetting than simpler measures, over many audited pairs.

    Five statements, each supported, not supported or undetermined, with its statistic and interval. Exits 0
    whatever they say: this judges the method, not a checkpoint.

    Example: atlas falsify lab/receipts/qwen3_moe lab/receipts/deepseek_v3
    """
    from moe_atlas.calibration.pairs import receipt_paths
    from moe_atlas.falsification.readings import reading_of
    from moe_atlas.falsification.statements import associations, statements
    from moe_atlas.receipt.verify import intact_receipt

    readings = [reading_of(intact_receipt(path), str(path)) for path in receipt_paths(receipts)]
    found, table = statements(readings), associations(readings)
    if as_json:
        rows: list[dict[str, Any]] = [
            {"quantity": key, "alone": asdict(alone), "given_distance": asdict(given)}
            for key, alone, given in table
        ]
        content = {"statements": [asdict(one) for one in found], "associations": rows}
        typer.echo(json.dumps(content | {"pairs": len(readings)}, indent=2))
        return
    for statement in found:
        typer.echo("\n".join(_lines(statement)))
    typer.echo(
        f"rank correlation with forgetting over {len(readings)} pairs, alone and given parameter distance:"
    )
    for key, alone, given in table:
        typer.echo(
            f"  {key:<22} {alone.estimate:+.2f} [{alone.low:+.2f}, {alone.high:+.2f}]"
            f"   {given.estimate:+.2f} [{given.low:+.2f}, {given.high:+.2f}]"
        )


def _lines(statement: Statement) -> list[str]:
    lines = [f"{statement.answer.upper()}: {statement.text}"]
    lines += [
        f"  {one.name} = {one.estimate:+.3f} [{one.low:+.3f}, {one.high:+.3f}], {one.pairs} pairs"
        for one in statement.statistics
    ]
    return [*lines, f"  {statement.reason}"]
