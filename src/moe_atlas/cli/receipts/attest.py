"""`atlas attest`: an audit's receipt as an in-toto Statement over the tuned checkpoint. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from moe_atlas.cli.common import options as o
from moe_atlas.errors import VERDICT_EXIT, ResourceExhausted, UsageError
from moe_atlas.receipt.files import own_paths, require_apart, require_free
from moe_atlas.system.atomic_write import write_atomic
from moe_atlas.text import shown


def attest(
    receipt: Annotated[Path, typer.Argument(metavar="RECEIPT", help="The receipt of an audit.")],
    checkpoint: Annotated[
        Path, typer.Option(metavar="CHECKPOINT", help="The tuned checkpoint; every byte is read.")
    ],
    like: o.Like = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where the statement goes.")
    ] = Path("statement.json"),
    key: Annotated[
        Path | None,
        typer.Option("--sign", metavar="FILE", help="PEM private key; adds a DSSE envelope beside it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> int:
    """Wrap a verified receipt as an in-toto Statement, beside a SHA256SUMS of the tuned checkpoint's files.

    Exits with the verdict's own code: 0 pass, 1 fail, 3 inconclusive; 5 when receipt or checkpoint do not agree.

    Example: atlas attest receipt.json --checkpoint tuned.ckpt -o statement.json
    """
    from moe_atlas.attestation.dsse import sign
    from moe_atlas.attestation.statement import MANIFEST_NAME, encode
    from moe_atlas.attestation.statement import attest as make
    from moe_atlas.verdict.qualifications import in_words

    envelope = output.parent / f"{output.stem}.dsse.json"
    targets = [output.parent / MANIFEST_NAME, output, *([] if key is None else [envelope])]
    _require_distinct(targets)
    for path in targets:
        require_free(path, force)
    require_apart(targets, (*own_paths(receipt), checkpoint, like, key))
    made = make(receipt, checkpoint, like)
    contents = [made.manifest, made.statement]
    contents += [] if key is None else [encode(sign(made.statement, key))]
    _write(targets, contents)
    names = ", ".join(shown(str(path)) for path in targets)
    typer.echo(f"wrote {names}; verdict {in_words(made.verdict, made.qualified)}")
    if made.uncovered:
        named = ", ".join(shown(name) for name in made.uncovered)
        typer.echo(f"not covered, though a loader might take it: {named}")
    typer.echo(
        f"check the files: (cd {shown(str(checkpoint))} && sha256sum -c {shown(str(targets[0].resolve()))})"
    )
    return int(VERDICT_EXIT[made.verdict])


def _require_distinct(targets: list[Path]) -> None:
    if len({os.path.realpath(path) for path in targets}) < len(targets):
        problem = "is the name of the manifest or of the envelope beside it"
        raise UsageError("E_OVER_INPUT", shown(str(targets[1])), problem, "choose another name")


def _write(targets: list[Path], contents: list[bytes]) -> None:
    """Write all files or none: a statement without its manifest would attest nothing."""
    written: list[Path] = []
    try:
        for path, data in zip(targets, contents, strict=True):
            write_atomic(path, data)
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        problem = f"cannot be written ({error.strerror}); nothing was kept"
        raise ResourceExhausted("E_WRITE", shown(str(targets[len(written)])), problem) from error
