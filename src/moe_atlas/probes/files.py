"""Bounded reading of the files a probe set is made of."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from moe_atlas.errors import InputRefused

_CHUNK = 1 << 20


def shown(text: str, limit: int = 80) -> str:
    """`text` quoted for a one-line message: control and format characters escaped, long text cut."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return repr(cut)


def sha256_hex(data: bytes) -> str:
    """Lower-case hexadecimal sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def read_bounded(path: Path, limit: int, code: str) -> bytes:
    """Read a whole regular file of at most `limit` bytes.

    The file is opened without blocking and checked after opening, so that a FIFO, a device or a file that
    grows meanwhile is refused instead of hanging or filling the memory.

    Raises:
        InputRefused: `code`; missing, unreadable, not a regular file, or longer than `limit`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputRefused(code, str(path), "is not a regular file", "give the file itself")
            pieces = _pieces(descriptor, limit + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({_reason(error)})"
        raise InputRefused(code, str(path), problem, "check its name and permissions") from error
    if sum(map(len, pieces)) > limit:
        problem = f"is longer than the limit of {limit} bytes"
        raise InputRefused(code, str(path), problem, "check that it is the file that was meant")
    return b"".join(pieces)


def _pieces(descriptor: int, most: int) -> list[bytes]:
    """What the file holds, up to `most` bytes."""
    pieces: list[bytes] = []
    while most > 0 and (piece := os.read(descriptor, min(_CHUNK, most))):
        pieces.append(piece)
        most -= len(piece)
    return pieces


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
