"""Reading and writing of the two files of a receipt: bounded, regular files only, atomic."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from moe_atlas.errors import InputRefused, ResourceExhausted, UsageError
from moe_atlas.system.bounded_read import Unreadable, read_regular
from moe_atlas.text import not_there, shown

SUFFIX = ".windows.safetensors"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def window_path(receipt: Path) -> Path:
    """Return where the window data of a receipt stand: ``receipt.json`` -> ``receipt.windows.safetensors``."""
    return receipt.parent / (receipt.stem + SUFFIX)


def read_bounded(path: Path, limit: int) -> bytes:
    """Return a regular file's bytes.

    Raises:
        UsageError: ``E_NO_FILE`` when there is none.
        InputRefused: ``E_NOT_REGULAR`` for a folder, pipe or device, ``E_SIZE`` beyond the limit, ``E_READ``
            when it cannot be read.
    """
    label = shown(str(path))
    try:
        return read_regular(path, limit)
    except Unreadable as error:
        match error.kind:
            case "missing":
                raise UsageError("E_NO_FILE", label, not_there(path, "there is no such file")) from None
            case "irregular":
                raise InputRefused("E_NOT_REGULAR", label, "expected a regular file") from None
            case "long":
                raise InputRefused("E_SIZE", label, error.reason) from None
        raise InputRefused("E_READ", label, f"cannot be read ({error.reason})") from None


def require_free(path: Path, force: bool) -> None:
    """Refuse a file that cannot be written, or is there already and is not to be replaced.

    Raises:
        UsageError: ``E_NO_FOLDER`` or ``E_EXISTS``.
    """
    label = shown(str(path))
    if not path.parent.is_dir():
        raise UsageError("E_NO_FOLDER", label, "its folder does not exist", "create it first")
    if path.is_dir() or (os.path.lexists(path) and not force):
        raise UsageError("E_EXISTS", label, "is there already", "choose another name, or add --force")


def require_apart(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Refuse to write over an input, or into the folder of a checkpoint, which would be another one then.

    Raises:
        UsageError: ``E_OVER_INPUT``, whatever was forced.
    """
    given = [path for path in inputs if path is not None]
    for output in outputs:
        for path in given:
            if os.path.realpath(output.parent if path.is_dir() else output) == os.path.realpath(path):
                problem = f"would be written over or into an input, {shown(str(path))}"
                raise UsageError("E_OVER_INPUT", shown(str(output)), problem, "choose another place")


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into one line: a full disk into exit 6, anything else into exit 2."""
    try:
        yield
    except OSError as error:
        label = shown(str(path))
        if error.errno in _DISK_FULL:
            raise ResourceExhausted(
                "E_DISK", label, f"the disk is full ({_why(error)})", "free some space"
            ) from None
        raise UsageError("E_WRITE", label, f"cannot be written ({_why(error)})") from None


def remove(*paths: Path) -> None:
    """Remove files that may be there."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
