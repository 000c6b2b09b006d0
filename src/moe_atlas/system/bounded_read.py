"""Reading whole files of a bounded length: the one place where a file of unknown size meets the memory."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

_PIECE = 64 << 20


@dataclass
class Unreadable(Exception):
    """Why a file was not read.

    Attributes:
        kind: ``missing``, ``unreadable``, ``irregular`` or ``long``.
        reason: the rest of a sentence that the file's name begins.
    """

    kind: str
    reason: str


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes, in memory that follows its length and not the limit.

    The file is opened without blocking and checked after opening, so that a FIFO, a device or a file that grows
    meanwhile is refused instead of hanging or filling the memory.

    Raises:
        Unreadable: there is none, it cannot be read, it is no regular file, or it is longer.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _read(descriptor, limit)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise Unreadable("missing", _reason(error)) from None
    except (OSError, ValueError) as error:
        raise Unreadable("unreadable", _reason(error)) from None


def _read(descriptor: int, limit: int) -> bytes:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("irregular", "is not a regular file")
    if found.st_size > limit:
        raise Unreadable("long", f"is longer than the limit of {limit} bytes: {found.st_size} bytes")
    pieces: list[bytes] = []
    length = 0
    # One byte more than the file says it has shows whether it grew; os.read sets aside what it is asked for.
    while length <= limit:
        wanted = min(max(found.st_size - length, 0) + 1, limit + 1 - length, _PIECE)
        piece = os.read(descriptor, wanted)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        length += len(piece)
    raise Unreadable("long", f"is longer than the limit of {limit} bytes")


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
