"""Paths, checks and errors of the two files of a receipt; only regular files of bounded length are read."""

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
TOKEN_SUFFIX = ".tokens.safetensors"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def window_path(receipt: Path) -> Path:
    """Return the path of a receipt's window data: ``receipt.json`` gives ``receipt.windows.safetensors``."""
    return receipt.parent / (receipt.stem + SUFFIX)


def token_path(receipt: Path) -> Path:
    """Return where the optional token data of a receipt stand: ``receipt.json`` -> ``receipt.tokens.safetensors``."""
    return receipt.parent / (receipt.stem + TOKEN_SUFFIX)


def own_paths(receipt: Path) -> tuple[Path, Path, Path]:
    """Return the receipt and everything that may stand beside it: window data, token data."""
    return receipt, window_path(receipt), token_path(receipt)


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the bytes of a receipt or of its window data.

    Raises:
        UsageError: ``E_NO_FILE`` if there is no such file.
        InputRefused: ``E_NOT_REGULAR`` for a folder, pipe or device; ``E_SIZE`` for a file longer than `limit`;
            ``E_READ`` if the system cannot read it.
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
    """Refuse a path in a missing folder, and a path that exists unless `force` is set.

    Raises:
        UsageError: ``E_NO_FOLDER`` or ``E_EXISTS``.
    """
    label = shown(str(path))
    if not path.parent.is_dir():
        raise UsageError("E_NO_FOLDER", label, "its folder does not exist", "create it first")
    if path.is_dir() or (os.path.lexists(path) and not force):
        raise UsageError("E_EXISTS", label, "is there already", "choose another name, or add --force")


def require_apart(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Refuse to write over an input or into the folder of a checkpoint; a new file there would change the checkpoint.

    Raises:
        UsageError: ``E_OVER_INPUT``; no option overrides it.
    """
    given = [path for path in inputs if path is not None]
    for output in outputs:
        for path in given:
            if os.path.realpath(output.parent if path.is_dir() else output) == os.path.realpath(path):
                problem = f"would be written over or into an input, {shown(str(path))}"
                raise UsageError("E_OVER_INPUT", shown(str(output)), problem, "choose another place")


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into a one-line error: exit code 6 for a full disk, otherwise exit code 2."""
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
    """Remove the files that exist."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
