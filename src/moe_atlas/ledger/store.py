"""The ledger on disk: `append` returns only once its entry cannot be lost."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moe_atlas.errors import InputRefused, IntegrityError, ResourceExhausted, UsageError
from moe_atlas.ledger.chain import (
    GENESIS,
    KINDS,
    MAX_LINE_BYTES,
    Entry,
    Head,
    make_entry,
    parse_chain,
    parse_line,
    render,
)
from moe_atlas.system.atomic_write import sync_folder, write_all, write_atomic
from moe_atlas.text import shown

DEFAULT_RUNS = Path(".atlas/runs")
MAX_LEDGER_BYTES = 1 << 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


@dataclass(frozen=True)
class Snapshot:
    """A ledger at the moment of reading, every line checked.

    Attributes:
        run: name of the run.
        entries: the entries in order.
        torn: bytes of an append that was cut short and never acknowledged; the next append moves them to a file.
    """

    run: str
    entries: tuple[Entry, ...]
    torn: bytes

    @property
    def head(self) -> Head:
        """Return the last entry's head."""
        return self.entries[-1].head if self.entries else Head(self.run, -1, GENESIS)


class Ledger:
    """The ledger of a run: a folder with ``ledger.jsonl`` and a file for each torn tail that was set aside.

    Args:
        run: name of the run: letters, digits, dot, dash and underscore.
        runs: the folder that holds the runs.

    Raises:
        UsageError: E_RUN for a name that is no plain folder name.
    """

    def __init__(self, run: str, runs: Path = DEFAULT_RUNS) -> None:
        if not _NAME.match(run):
            hint = "use letters, digits, dot, dash and underscore"
            raise UsageError("E_RUN", shown(run), "is no name of a run", hint)
        self.run = run
        self.folder = runs / run
        self.path = self.folder / "ledger.jsonl"

    @property
    def exists(self) -> bool:
        """Return whether the run has a ledger."""
        return self.path.exists()

    def read(self) -> Snapshot:
        """Read and check the whole chain under a shared lock.

        Raises:
            UsageError: E_RUN if there is no such run.
            IntegrityError: E_LEDGER if a line was changed.
        """
        if not self.exists:
            raise UsageError("E_RUN", shown(str(self.path)), "there is no ledger of this run")
        with self._opened(os.O_RDONLY) as descriptor:
            _lock(descriptor, fcntl.LOCK_SH)
            raw = _read_all(descriptor, shown(str(self.path)))
        entries, torn = parse_chain(raw, self.run, shown(str(self.path)))
        return Snapshot(self.run, entries, torn)

    def head(self) -> Head:
        """Return the head to write into a receipt; without a ledger, the head of an empty ledger."""
        return self.read().head if self.exists else Head(self.run, -1, GENESIS)

    def append(self, kind: str, body: Mapping[str, Any], now: datetime | None = None) -> Entry:
        """Record an event; when this method returns, the entry is on the disk.

        The lock is held from reading the head until the entry is synced, so writers queue. The torn tail of a killed
        writer is copied to a file beside the ledger, cut off, and recorded as an entry of its own. If the disk is full,
        the ledger is cut back to its former length.

        Args:
            kind: one of `KINDS`.
            body: JSON without NaN.
            now: the time to record; by default the current time.

        Raises:
            IntegrityError: E_LEDGER if the last line was changed.
            ResourceExhausted: E_LEDGER_WRITE if the entry cannot be written to the disk.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, found {kind!r}")
        stamp = (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="microseconds")
        with self._writing():
            if not self.exists:
                self._create()
            with self._opened(os.O_RDWR) as descriptor:
                _lock(descriptor, fcntl.LOCK_EX)
                head = self._settle(descriptor, stamp)
                entry = make_entry(head, kind, body, stamp)
                self._extend(descriptor, render(entry))
        return entry

    def _create(self) -> None:
        """Create and sync the folders before the first line: a file in a lost folder is lost."""
        made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
        for folder in {self.folder, *(entry.parent for entry in made)}:
            sync_folder(folder)

    def _settle(self, descriptor: int, stamp: str) -> Head:
        """Set a torn tail aside and record it, then return the head for the next entry."""
        size = os.fstat(descriptor).st_size
        last, torn = self._tail(descriptor, size)
        head = last.head if last is not None else Head(self.run, -1, GENESIS)
        if not torn:
            return head
        digest = hashlib.sha256(torn).hexdigest()
        name = f"torn-{head.seq + 1}-{digest[:16]}.bin"
        write_atomic(self.folder / name, torn)
        os.ftruncate(descriptor, size - len(torn))
        body = {"torn_bytes": len(torn), "torn_sha256": digest, "kept_as": name}
        entry = make_entry(head, "repair", body, stamp)
        self._extend(descriptor, render(entry))
        return entry.head

    def _tail(self, descriptor: int, size: int) -> tuple[Entry | None, bytes]:
        """Return the last whole entry, checked, and the torn bytes after it."""
        where = shown(str(self.path))
        window = min(size, 2 * MAX_LINE_BYTES)
        raw = os.pread(descriptor, window, size - window)
        end = raw.rfind(b"\n") + 1
        if end == 0:
            if window < size:
                raise IntegrityError("E_LEDGER", where, "its last lines are no entries")
            return None, raw
        begin = raw.rfind(b"\n", 0, end - 1) + 1
        if begin == 0 and window < size:
            raise IntegrityError("E_LEDGER", where, "its last line is too long to be an entry")
        entry = parse_line(raw[begin : end - 1], f"{where}: last line")
        if entry.run != self.run:
            raise IntegrityError("E_LEDGER", where, f"belongs to another run, {shown(entry.run)}")
        return entry, raw[end:]

    def _extend(self, descriptor: int, line: bytes) -> None:
        """Add a line and sync it to the disk, or restore the file's former length."""
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"a ledger entry of {len(line)} bytes is longer than {MAX_LINE_BYTES}")
        size = os.fstat(descriptor).st_size
        try:
            os.lseek(descriptor, size, os.SEEK_SET)
            write_all(descriptor, line)
            os.fsync(descriptor)
            sync_folder(self.folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
            raise

    @contextlib.contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        """Open the ledger and yield its descriptor; refuse a FIFO, which could block, and a link to another place."""
        try:
            descriptor = os.open(self.path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise _refused(self.path, error) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputRefused("E_LEDGER", shown(str(self.path)), "is not a regular file")
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            problem = f"the entry cannot be brought to the disk ({error.strerror}); nothing was recorded"
            if error.errno in _FULL:
                hint = "free some space and record it again"
                raise ResourceExhausted("E_LEDGER_WRITE", shown(str(self.path)), problem, hint) from error
            raise _refused(self.path, error) from error


def _refused(path: Path, error: OSError) -> UsageError:
    return UsageError("E_LEDGER_OPEN", shown(str(path)), f"cannot be opened for this ({error.strerror})")


def _lock(descriptor: int, operation: int) -> None:
    """Wait for the lock; the lock ends with its descriptor, so a killed holder releases it."""
    fcntl.flock(descriptor, operation)


def _read_all(descriptor: int, where: str) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > MAX_LEDGER_BYTES:
        raise InputRefused("E_LEDGER", where, f"is longer than the limit of {MAX_LEDGER_BYTES} bytes")
    pieces: list[bytes] = []
    offset = 0
    while piece := os.pread(descriptor, 1 << 20, offset):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)
