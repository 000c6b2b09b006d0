"""`atlas init`: a commented probe file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_atlas.errors import ResourceExhausted
from moe_atlas.receipt.files import require_free
from moe_atlas.system.atomic_write import write_atomic
from moe_atlas.text import shown


def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The probe file to write.")] = Path(
        "probes.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a commented probe file to edit and register.

    Example: atlas init
    """
    from moe_atlas.probes.template import TEMPLATE

    require_free(path, force)
    try:
        write_atomic(path, TEMPLATE.encode("utf-8"))
    except OSError as error:
        raise ResourceExhausted(
            "E_WRITE", shown(str(path)), f"cannot be written ({error.strerror})"
        ) from error
    typer.echo(
        f"wrote {shown(str(path))}; edit its domains and budgets, then: atlas register {shown(str(path))}"
    )
