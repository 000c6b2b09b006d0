"""`atlas verify`: does a receipt still follow from its evidence? Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_atlas.cli.common import options as o
from moe_atlas.errors import Exit, UsageError
from moe_atlas.text import shown

if TYPE_CHECKING:
    from moe_atlas.receipt.verify import VerifyReport

_VERDICTS = {"pass": Exit.PASS, "fail": Exit.FAIL, "inconclusive": Exit.INCONCLUSIVE}


def verify(
    receipt: o.Receipt,
    probe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Probe file whose registration the receipt must carry."),
    ] = None,
    policy_from: o.PolicyFrom = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT", help="Tuned checkpoint (of a baseline: the checkpoint) to hash again."
        ),
    ] = None,
    like: o.Like = None,
    integrity_only: Annotated[
        bool, typer.Option("--integrity-only", help="Exit 0 on an intact receipt of any verdict.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Derive every interval and the verdict again from the window data, and list every mismatch.

    Exits with the verdict's own code when everything agrees (0 pass, 1 fail, 3 inconclusive, also for a baseline or a
    look, which judge nothing), 5 when anything does not.

    Example: atlas verify receipt.json --probe probes.yaml
    """
    from moe_atlas.receipt.verify import verify as check

    if like is not None and checkpoint is None:
        raise UsageError(
            "E_ADAPTER", "--like", "is the base of no adapter", "give the adapter with --checkpoint"
        )
    report = check(receipt, probe, checkpoint, policy_from, like)
    code = exit_code(report, integrity_only=integrity_only)
    typer.echo(json.dumps(_object(report, code)) if as_json else _text(receipt, report))
    return int(code)


def exit_code(report: VerifyReport, *, integrity_only: bool) -> Exit:
    """Return the exit code of a verification: 5 on any mismatch, else the verdict's own code."""
    if report.mismatches or report.receipt is None:
        return Exit.CHANGED
    if integrity_only:
        return Exit.PASS
    if report.kind == "baseline":  # it compares nothing: whoever promotes on 0 must not promote on it
        return Exit.INCONCLUSIVE
    return _VERDICTS.get(str(report.verdict), Exit.CHANGED)


def _object(report: VerifyReport, code: Exit) -> dict[str, Any]:
    return {
        "intact": code != Exit.CHANGED,
        "kind": report.kind,
        "verdict": report.verdict,
        "qualified": [] if report.receipt is None else report.receipt["qualified"],
        "exit_code": int(code),
        "checked": report.checked,
        "absent": report.absent,
        "mismatches": [{"path": one.path, "problem": one.problem} for one in report.mismatches],
    }


def _text(path: Path, report: VerifyReport) -> str:
    from moe_atlas.verdict.qualifications import in_words

    name = shown(str(path))
    if report.mismatches or report.receipt is None:
        lines = [f"{name}: does NOT verify, {len(report.mismatches)} mismatches"]
        lines += [f"  {shown(one.path)}: {shown(one.problem, 300)}" for one in report.mismatches]
        return "\n".join([*lines, "do not rely on any number in it"])
    said = in_words(str(report.verdict), report.receipt["qualified"])
    verdict = "baseline: nothing was compared" if report.kind == "baseline" else f"verdict {said}"
    lines = [f"{name}: intact, {verdict}", f"  checked: {', '.join(report.checked)}"]
    return "\n".join([*lines, *(f"  not beside it, so not checked: {one}" for one in report.absent)])
