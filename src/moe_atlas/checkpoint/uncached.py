"""Reading past the system's cache what it does not hold.

To fill the cache costs the processor more than to hash what was read, for bytes that are read once, and throws out of
it what other processes need. What is in the cache already is read from there.
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
LEAST = 256 << 10  # bytes of a read below which waiting for it costs more than the cache does

try:
    import fcntl
except ImportError:  # Windows
    POSSIBLE = False
else:
    POSSIBLE = sys.platform == "linux" and hasattr(os, "O_DIRECT")  # elsewhere 451 is another call

_own = local()


def read(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill the beginning of a buffer with the file's bytes from `offset` on.

    Args:
        descriptor: an open file that no other thread uses meanwhile.
        buffer: where they go, at any address.
        offset: where they stand, at any place.

    Returns:
        How many there are; 0 where this way is closed: for a few bytes, for those in the cache, at the end of the
        file, on systems without it.
    """
    if not POSSIBLE or len(buffer) < LEAST or _held(descriptor, offset, len(buffer)):
        return 0
    filled = 0
    with _past_the_cache(descriptor):
        while filled < len(buffer) and (count := _read_piece(descriptor, buffer[filled:], offset + filled)):
            filled += count
    return filled


def _read_piece(descriptor: int, buffer: memoryview, offset: int) -> int:
    """See `read`; whole pages are read, up to `PIECE`, and what was asked for is copied out of them."""
    skipped = offset % mmap.PAGESIZE
    pages = -(-(skipped + len(buffer)) // mmap.PAGESIZE)
    piece = _aligned()[: pages * mmap.PAGESIZE]
    try:
        found = os.preadv(descriptor, [piece], offset - skipped)
    except OSError:  # what else is wrong with the file shows when it is read as usual
        return 0
    count = max(0, min(found - skipped, len(buffer)))
    buffer[:count] = piece[skipped : skipped + count]
    return count


def _held(descriptor: int, begin: int, length: int) -> bool:
    """Whether most of some bytes are in the system's cache, or it does not say."""
    extent, found = (ctypes.c_uint64 * 2)(begin, length), (ctypes.c_uint64 * 5)()
    if _libc().syscall(CACHESTAT, descriptor, extent, found, 0):
        return True
    return 2 * found[0] * mmap.PAGESIZE >= length


@contextmanager
def _past_the_cache(descriptor: int) -> Iterator[None]:
    before = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with suppress(OSError):  # a file system without it reads as usual
        fcntl.fcntl(descriptor, fcntl.F_SETFL, before | os.O_DIRECT)
    try:
        yield
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, before)


def _aligned() -> memoryview:
    """Memory of this thread that such reads go to: whole pages."""
    piece: memoryview | None = getattr(_own, "piece", None)
    if piece is None:
        piece = _own.piece = memoryview(mmap.mmap(-1, PIECE))
    return piece


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
