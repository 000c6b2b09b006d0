"""Bounded reading of the small files a probe set is made of, and their atomic writing."""

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
                raise InputRefused(code, str(path), "is not a regular file")
            pieces = _pieces(descriptor, limit + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise InputRefused(code, str(path), f"cannot be read ({_reason(error)})") from error
    if sum(map(len, pieces)) > limit:
        raise InputRefused(code, str(path), f"is longer than the limit of {limit} bytes")
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


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a crash leaves the old file or the new one, never a part.

    The bytes go to a temporary file of the same folder, reach the disk, take the name, and the folder reaches
    the disk too.

    Raises:
        OSError: the folder is not writable or the disk is full; the temporary file is then removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
    )
    try:
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte of `data`: one `os.write` may take only a part without saying so."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
