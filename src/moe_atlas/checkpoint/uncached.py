"""Read bytes without filling the system's cache; bytes that the cache holds already come from there.

For bytes that are read once, filling the cache costs more processor time than hashing them. It also evicts pages that
other processes need.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from threading import local

PIECE = 1 << 20  # bytes that are read at a time
CACHESTAT = 451  # the number of the system call on x86-64, arm64 and most others; since Linux 6.5
LEAST = 256 << 10  # bytes; for a shorter read, waiting for the disk costs more than using the cache

try:
    import fcntl
except ImportError:  # Windows
    POSSIBLE = False
else:
    POSSIBLE = sys.platform == "linux" and hasattr(os, "O_DIRECT")  # on other machines 451 is another call

_own = local()


def read(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill the beginning of a buffer with the file's bytes from `offset` on.

    Args:
        descriptor: an open file that no other thread uses meanwhile.
        buffer: where the bytes go, at any address.
        offset: position of the first byte in the file; it need not be aligned.

    Returns:
        The number of bytes read. It is 0 if this way is not used: for few bytes, for bytes in the cache, at the end of
        the file, and on systems without it.
    """
    if not POSSIBLE or len(buffer) < LEAST or _held(descriptor, offset, len(buffer)):
        return 0
    filled = 0
    with _past_the_cache(descriptor):
        while filled < len(buffer) and (count := _read_piece(descriptor, buffer[filled:], offset + filled)):
            filled += count
    return filled


def _read_piece(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read whole pages, at most `PIECE` bytes, and copy the requested bytes; see `read`."""
    skipped = offset % mmap.PAGESIZE
    pages = -(-(skipped + len(buffer)) // mmap.PAGESIZE)
    piece = _aligned()[: pages * mmap.PAGESIZE]
    try:
        found = os.preadv(descriptor, [piece], offset - skipped)
    except OSError:  # the usual read reports any other fault of the file
        return 0
    count = max(0, min(found - skipped, len(buffer)))
    buffer[:count] = piece[skipped : skipped + count]
    return count


def _held(descriptor: int, begin: int, length: int) -> bool:
    """Return whether most of these bytes are in the system's cache, or the system does not say."""
    extent, found = (ctypes.c_uint64 * 2)(begin, length), (ctypes.c_uint64 * 5)()
    if _libc().syscall(CACHESTAT, descriptor, extent, found, 0):
        return True
    return 2 * found[0] * mmap.PAGESIZE >= length


@contextmanager
def _past_the_cache(descriptor: int) -> Iterator[None]:
    before = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with suppress(OSError):  # a file system without this call uses the usual read
        fcntl.fcntl(descriptor, fcntl.F_SETFL, before | os.O_DIRECT)
    try:
        yield
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, before)


def _aligned() -> memoryview:
    """Return the page-aligned buffer of this thread for such reads."""
    piece: memoryview | None = getattr(_own, "piece", None)
    if piece is None:
        piece = _own.piece = memoryview(mmap.mmap(-1, PIECE))
    return piece


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
