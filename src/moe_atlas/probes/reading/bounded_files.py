"""Bounded reading of the files of a probe set."""

from __future__ import annotations

import hashlib
from pathlib import Path

from moe_atlas.errors import InputRefused
from moe_atlas.system.bounded_read import Unreadable, read_regular


def sha256_hex(data: bytes) -> str:
    """Return the lower-case hexadecimal sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def read_bounded(path: Path, limit: int, code: str) -> bytes:
    """Read a whole regular file of at most `limit` bytes.

    Raises:
        InputRefused: `code`; missing, unreadable, not a regular file, or longer than `limit`.
    """
    try:
        return read_regular(path, limit)
    except Unreadable as error:
        problem, step = _REFUSED.get(error.kind, ("cannot be read ({})", "check its name and permissions"))
        raise InputRefused(code, str(path), problem.format(error.reason), step) from None


_REFUSED = {
    "irregular": ("{}", "give the file itself"),
    "long": ("{}", "check that it is the file that was meant"),
}
