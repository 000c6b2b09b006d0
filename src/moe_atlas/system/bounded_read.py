"""Read whole files of bounded length; every file of unknown size is read into memory here."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

_PIECE = 64 << 20


@dataclass
class Unreadable(Exception):
    """The reason why a file was not read.

    Attributes:
        kind: ``missing``, ``unreadable``, ``irregular`` or ``long``.
        reason: the predicate of a sentence whose subject is the file's name.
    """

    kind: str
    reason: str


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; memory use follows the file's length, not the limit.

    The function opens the file without blocking and checks it after opening. So it refuses a FIFO, a device or a
    growing file instead of hanging or filling the memory.

    Raises:
        Unreadable: the file is missing, unreadable, not regular, or longer than `limit`.
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
    # Reading one byte more than the stated size shows whether the file grew. os.read allocates the requested size.
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
