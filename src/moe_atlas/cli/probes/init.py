"""`atlas init`: a probe file to start from: commented, or written for a base checkpoint and documents."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_atlas.errors import ResourceExhausted, UsageError
from moe_atlas.receipt.files import require_free
from moe_atlas.system.atomic_write import write_atomic
from moe_atlas.text import shown

if TYPE_CHECKING:
    from moe_atlas.drafting.documents import Given

MARGIN = 0.05


def init(
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The probe file to write [default: probes.yaml].")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="Write the file for this base checkpoint.")
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT", help="Check that this tuned checkpoint is comparable with the base."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="A base domain: documents that must not get worse; repeatable."
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="A task domain: what the tune was to learn; repeatable."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|bytes|none",
            help="Instead of the tokenizer.json beside the base; none where all sources hold token ids.",
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(
            min=1e-6, metavar="NATS", help="Rise of a base domain's loss a token that you would promote."
        ),
    ] = MARGIN,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The same as FILE.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; needs --base.")] = False,
) -> None:
    """Write a probe file: a commented one to edit, or with --base one that registers as it is.

    With --base it reads headers and documents: tokenizer, window length, stride, layers and number of documents follow
    from them. The stage is damage-only, because no budgets exist yet.

    Example: atlas init --base base.ckpt --data prose=prose.jsonl --data code=src/ --task sft.jsonl
    """
    target = path or out or Path("probes.yaml")
    if path is not None and out is not None and path != out:
        raise UsageError("E_OPTIONS", "--out", f"names another file than {shown(str(path))}", "name it once")
    require_free(target, force)
    if base is not None:
        _draft(target, base, tuned, _given(data or [], task or []), tokenizer, margin, as_json)
        return
    if as_json or any(value is not None for value in (tuned, data, task, tokenizer)):
        problem = "is not given, and the other options write a file for a base checkpoint"
        raise UsageError("E_OPTIONS", "--base", problem, "add --base CHECKPOINT, or name only FILE")
    from moe_atlas.probes.template import TEMPLATE

    _write(target, TEMPLATE)
    typer.echo(
        f"wrote {shown(str(target))}; edit its domains and budgets, then: atlas register {shown(str(target))}"
    )


def _given(data: list[str], task: list[str]) -> list[Given]:
    from moe_atlas.drafting.documents import Given

    found = [Given(*_named(text, "base", "--data")) for text in data]
    found += [Given(*_named(text, "task", "--task")) for text in task]
    if not data:
        problem = "is not given: without a base domain nothing would be guarded"
        raise UsageError(
            "E_OPTIONS", "--data", problem, "name what must not get worse: --data prose=prose.jsonl"
        )
    return found


def _named(text: str, role: str, option: str) -> tuple[str, str, Path]:
    """Return name, role and path; a task without a name is called after its file."""
    name, mark, path = text.partition("=")
    if not mark:
        name, path = ("" if role == "base" else Path(text).name.split(".")[0]), text
    if not name or not path:
        raise UsageError(
            "E_OPTIONS", f"{option} {shown(text)}", "has no name or no path", f"{option} NAME=PATH"
        )
    return name, role, Path(path)


def _draft(
    target: Path,
    base: Path,
    tuned: Path | None,
    given: list[Given],
    tokenizer: str | None,
    margin: float,
    as_json: bool,
) -> None:
    from moe_atlas.drafting.draft import draft
    from moe_atlas.report.registration.bound import checks, domain_facts, domain_lines

    made = draft(target, base, given, tuned=tuned, tokenizer=tokenizer, margin=margin)
    _write(target, made.text)
    found = {
        "probes": str(target),
        "domains": domain_facts(made.lock),
        "notes": made.notes,
        "checks": checks(made.lock),
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(
        f"wrote {shown(str(target))}, stage damage-only; its windows were tried, and it registers as it is"
    )
    for line in domain_lines(made.lock):
        typer.echo(line)
    for line in (*made.notes, *checks(made.lock)):
        typer.echo(f"  note: {shown(line, 400)}")
    file, pair = shlex.quote(str(target)), f"{shlex.quote(str(base))} {shlex.quote(str(tuned or 'TUNED'))}"
    typer.echo(
        f"next: atlas register {file}\n      atlas plan {pair} --probe {file}\n      atlas audit {pair} --probe {file}"
    )


def _write(path: Path, text: str) -> None:
    try:
        write_atomic(path, text.encode("utf-8"))
    except OSError as error:
        raise ResourceExhausted(
            "E_WRITE", shown(str(path)), f"cannot be written ({error.strerror})"
        ) from error
