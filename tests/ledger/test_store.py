from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from moe_atlas.errors import Exit, InputRefused, IntegrityError, ResourceExhausted, UsageError
from moe_atlas.ledger import Ledger
from moe_atlas.ledger import store as store_module
from moe_atlas.ledger.chain import GENESIS, MAX_LINE_BYTES, Head, render


def bodies(ledger: Ledger) -> list[object]:
    return [entry.body.get("n") for entry in ledger.read().entries if entry.kind != "repair"]


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    ledger = Ledger("sft-640", tmp_path)
    assert not ledger.exists
    assert ledger.head().seq == -1
    acknowledged = [ledger.append("audit", {"n": n}) for n in range(5)]
    assert ledger.read().entries == tuple(acknowledged)
    assert ledger.read().torn == b""
    assert ledger.head() == acknowledged[-1].head
    assert ledger.path == tmp_path / "sft-640" / "ledger.jsonl"


@pytest.mark.parametrize("run", ["", ".", "..", "a/b", "../a", "-x", "a b", "ü", "a\n", "x" * 129, ".hidden"])
def test_a_run_is_one_folder(tmp_path: Path, run: str) -> None:
    with pytest.raises(UsageError) as caught:
        Ledger(run, tmp_path)
    assert caught.value.exit_code == Exit.USAGE


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no ledger"):
        Ledger("r", tmp_path).read()


def test_unknown_kinds_and_oversized_entries_are_bugs(tmp_path: Path) -> None:
    ledger = Ledger("r", tmp_path)
    with pytest.raises(ValueError, match="kind"):
        ledger.append("promotion", {})
    with pytest.raises(ValueError, match="longer"):
        ledger.append("audit", {"text": "x" * (1 << 20)})
    with pytest.raises(ValueError, match="JSON"):
        ledger.append("audit", {"value": float("nan")})
    ledger.append("audit", {"n": 0})
    assert bodies(ledger) == [0]


@pytest.mark.parametrize("torn", [b"{", b'{"body":{}', b"\x00" * 5000, b"\xff"])
def test_a_torn_tail_is_set_aside_and_recorded(tmp_path: Path, torn: bytes) -> None:
    ledger = Ledger("r", tmp_path)
    ledger.append("audit", {"n": 0})
    with ledger.path.open("ab") as file:
        file.write(torn)
    assert ledger.read().torn == torn
    ledger.append("audit", {"n": 1})
    snapshot = ledger.read()
    assert snapshot.torn == b""
    assert [entry.kind for entry in snapshot.entries] == ["audit", "repair", "audit"]
    repair = snapshot.entries[1].body
    assert repair["torn_bytes"] == len(torn)
    assert repair["kept_as"] == f"torn-1-{hashlib.sha256(torn).hexdigest()[:16]}.bin"
    assert (ledger.folder / str(repair["kept_as"])).read_bytes() == torn


def test_a_torn_first_line_is_set_aside_too(tmp_path: Path) -> None:
    ledger = Ledger("r", tmp_path)
    ledger.folder.mkdir()
    ledger.path.write_bytes(b'{"body"')
    ledger.append("baseline", {"n": 0})
    assert [entry.kind for entry in ledger.read().entries] == ["repair", "baseline"]


def test_an_empty_ledger_has_the_head_of_none(tmp_path: Path) -> None:
    ledger = Ledger("r", tmp_path)
    ledger.folder.mkdir()
    ledger.path.write_bytes(b"")
    assert ledger.head() == ledger.read().head == Head("r", -1, GENESIS)


def test_only_the_tail_is_read_to_append_and_what_is_no_tail_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger("r", tmp_path)
    for n in range(9):
        ledger.append("audit", {"n": n})
    longest = max(map(len, ledger.path.read_bytes().splitlines(keepends=True)))
    monkeypatch.setattr(store_module, "MAX_LINE_BYTES", longest)
    ledger.append("audit", {"n": 9})
    assert bodies(ledger) == list(range(10))
    whole = ledger.path.read_bytes()
    for tail, problem in (
        (b"x" * (2 * longest), "its last lines are no entries"),
        (b"x" * 2 * longest + b"\n", "too long"),
    ):
        ledger.path.write_bytes(whole + tail)
        with pytest.raises(IntegrityError, match=problem):
            ledger.append("audit", {"n": 10})
        assert ledger.path.read_bytes() == whole + tail


def test_a_ledger_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger("r", tmp_path)
    ledger.append("audit", {"n": 0})
    size = ledger.path.stat().st_size
    monkeypatch.setattr(store_module, "MAX_LEDGER_BYTES", size)
    assert bodies(ledger) == [0]
    monkeypatch.setattr(store_module, "MAX_LEDGER_BYTES", size - 1)
    with pytest.raises(InputRefused, match="longer than the limit"):
        ledger.read()


def test_every_new_folder_reaches_the_disk_before_the_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    ledger = Ledger("r", tmp_path / "new" / "runs")
    ledger.append("audit", {"n": 0})
    folders = {str(folder) for folder in (ledger.folder, ledger.folder.parent, tmp_path / "new", tmp_path)}
    assert set(synced[: synced.index(str(ledger.path))]) == folders
    umask = os.umask(0)
    os.umask(umask)
    assert ledger.path.stat().st_mode & 0o777 == 0o644 & ~umask


@pytest.mark.parametrize("damage", [b"garbage\n", b"{}\n", b"\x00\n"])
def test_a_whole_line_that_is_no_entry_is_never_built_upon(tmp_path: Path, damage: bytes) -> None:
    ledger = Ledger("r", tmp_path)
    ledger.append("audit", {"n": 0})
    with ledger.path.open("ab") as file:
        file.write(damage)
    before = ledger.path.read_bytes()
    for action in (ledger.read, lambda: ledger.append("audit", {"n": 1})):
        with pytest.raises(IntegrityError):
            action()
    assert ledger.path.read_bytes() == before


def test_a_ledger_moved_from_another_run_is_not_built_upon(tmp_path: Path) -> None:
    Ledger("a", tmp_path).append("audit", {"n": 0})
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(IntegrityError, match="another run"):
        Ledger("b", tmp_path).append("audit", {"n": 1})


@pytest.mark.parametrize("written", [0, 1, 40])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_takes_the_line_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int, code: int
) -> None:
    ledger = Ledger("r", tmp_path)
    ledger.append("audit", {"n": 0})
    before = ledger.path.read_bytes()
    real, left = os.write, [written]

    def full(descriptor: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(code, os.strerror(code))
        count = real(descriptor, bytes(data[: left[0]]))
        left[0] -= count
        return count

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResourceExhausted) as caught:
        ledger.append("audit", {"n": 1})
    monkeypatch.undo()
    assert caught.value.exit_code == Exit.EXHAUSTED
    assert ledger.path.read_bytes() == before
    ledger.append("audit", {"n": 2})
    assert bodies(ledger) == [0, 2]


def test_a_failed_sync_is_not_an_acknowledgement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger("r", tmp_path)
    ledger.append("audit", {"n": 0})
    before = ledger.path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceExhausted, match="E_LEDGER_WRITE"):
        ledger.append("audit", {"n": 1})
    monkeypatch.undo()
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOTCONN])
def test_whatever_the_system_refuses_is_no_acknowledgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    ledger = Ledger("r", tmp_path)
    ledger.append("audit", {"n": 0})

    def refuse(descriptor: int, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", refuse)
        with pytest.raises(UsageError, match="E_LEDGER_OPEN"):
            ledger.append("audit", {"n": 1})
    assert bodies(ledger) == [0]


def test_file_and_folder_are_synced_before_the_acknowledgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger("r", tmp_path)
    ledger.append("audit", {"n": 0})
    synced: list[tuple[str, int]] = []
    real = os.fsync

    def watch(descriptor: int) -> None:
        real(descriptor)
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((target.name, ledger.path.stat().st_size))

    monkeypatch.setattr(os, "fsync", watch)
    ledger.append("audit", {"n": 1})
    assert synced == [("ledger.jsonl", ledger.path.stat().st_size), ("r", ledger.path.stat().st_size)]


def test_partial_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger("r", tmp_path)
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:7])))
    ledger.append("audit", {"n": 0})
    ledger.append("audit", {"n": 1})
    monkeypatch.undo()
    assert bodies(ledger) == [0, 1]


def test_the_kernel_limit_on_file_size_takes_the_line_back(tmp_path: Path) -> None:
    """A real partial write: the kernel accepts some bytes, then refuses with EFBIG."""
    ledger = Ledger("r", tmp_path)
    ledger.append("audit", {"n": 0})
    size = ledger.path.stat().st_size
    program = (
        "import sys, resource; from pathlib import Path; from moe_atlas.ledger import Ledger\n"
        "from moe_atlas.errors import ResourceExhausted\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 50}, {size + 50}))\n"
        "try: Ledger('r', Path(sys.argv[1])).append('audit', {'n': 1})\n"
        "except ResourceExhausted: sys.exit(6)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == Exit.EXHAUSTED
    assert ledger.path.stat().st_size == size
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert bodies(ledger) == [0]


def test_the_longest_line_is_written_and_read_back(tmp_path: Path) -> None:
    ledger = Ledger("r", tmp_path)
    short = ledger.append("audit", {"pad": ""}, datetime(2026, 1, 1, tzinfo=UTC))
    room = MAX_LINE_BYTES - len(render(short))
    ledger.append("audit", {"pad": "x" * room}, datetime(2026, 1, 1, tzinfo=UTC))
    assert [len(render(entry)) for entry in ledger.read().entries] == [len(render(short)), MAX_LINE_BYTES]
    with pytest.raises(ValueError, match="longer"):
        ledger.append("audit", {"pad": "x" * (room + 1)}, datetime(2026, 1, 1, tzinfo=UTC))
    assert ledger.append("audit", {}).seq == 2


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "a" / "ledger.jsonl").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "ledger.jsonl")
    (tmp_path / "c" / "ledger.jsonl").mkdir(parents=True)
    for run in "abc":
        ledger = Ledger(run, tmp_path)
        for action in (ledger.read, lambda ledger=ledger: ledger.append("audit", {})):
            with pytest.raises((UsageError, InputRefused), match="E_LEDGER_OPEN|E_LEDGER "):
                action()
    assert (tmp_path / "elsewhere").read_text() == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError):
        Ledger("r", tmp_path).append("audit", {})


def test_writers_of_one_process_queue(tmp_path: Path) -> None:
    def write(worker: int) -> None:
        for n in range(10):
            Ledger("r", tmp_path).append("audit", {"n": [worker, n]})

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = bodies(Ledger("r", tmp_path))
    assert len(found) == 40
    for worker in range(4):
        assert [pair[1] for pair in found if pair[0] == worker] == list(range(10))  # type: ignore[index]


WRITER = """\
import os, sys
from pathlib import Path
from moe_atlas.ledger import Ledger
ledger, out = Ledger("r", Path(sys.argv[1])), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
n = 0
while True:
    entry = ledger.append("audit", {"writer": sys.argv[2], "n": n, "pad": "x" * (n % 7 * 300)})
    os.write(out, f"{entry.seq} {entry.hash}\\n".encode())
    n += 1
"""


def kill_writers(folder: Path, rounds: int, writers: int, seed: int) -> tuple[int, int]:
    """Kill writers at random times; returns kills and acknowledged entries, all of which must be there."""
    import random

    generator = random.Random(seed)
    acknowledgements = [folder / f"ack-{n}" for n in range(rounds)]
    running: list[subprocess.Popen[bytes]] = []
    started = kills = 0
    while started < rounds or running:
        while started < rounds and len(running) < writers:
            command = [sys.executable, "-c", WRITER, str(folder), str(acknowledgements[started])]
            running.append(subprocess.Popen(command))
            started += 1
        victim = running.pop(0)
        deadline = time.monotonic() + 20
        ack = acknowledgements[started - len(running) - 1]
        while not (ack.exists() and ack.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(generator.random() * 0.03)
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        kills += 1
    entries = Ledger("r", folder).read().entries
    hashes = [entry.hash for entry in entries]
    acknowledged = 0
    for file in acknowledgements:
        for line in file.read_text().splitlines() if file.exists() else []:
            seq, digest = line.split()
            assert hashes[int(seq)] == digest
            acknowledged += 1
    Ledger("r", folder).append("audit", {"after": True})
    return kills, acknowledged


def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path) -> None:
    kills, acknowledged = kill_writers(tmp_path, rounds=16, writers=8, seed=0)
    assert kills == 16
    assert acknowledged >= 16


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_to_a_thousand_kill_9(tmp_path: Path) -> None:
    kills, acknowledged = kill_writers(tmp_path, rounds=1000, writers=8, seed=1)
    print(f"{kills} kill -9 of 8 writers: {acknowledged} acknowledged, 0 lost")
    assert kills == 1000
    assert acknowledged >= 1000


class LedgerMachine(RuleBasedStateMachine):
    """Appends, crashes inside a write, tears and full disks in any order: the acknowledged entries stay."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.ledger = Ledger("r", Path(self.folder.name))
        self.acknowledged: list[str] = []
        self.count = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    def _append(self) -> None:
        self.count += 1
        self.acknowledged.append(self.ledger.append("audit", {"n": self.count}).hash)

    @rule()
    def append(self) -> None:
        self._append()

    @rule(data=st.binary(min_size=1, max_size=30).filter(lambda raw: b"\n" not in raw))
    def tear(self, data: bytes) -> None:
        if self.ledger.exists:
            with self.ledger.path.open("ab") as file:
                file.write(data)

    @rule(keep=st.integers(0, 200), crash=st.booleans())
    def interrupted(self, keep: int, crash: bool) -> None:
        """A write that stops after `keep` bytes: by a full disk, or by a death that leaves them there."""
        real, left = os.write, [keep]

        def stop(descriptor: int, data: bytes) -> int:
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            count = real(descriptor, bytes(data[: left[0]]))
            left[0] -= count
            return count

        patch = pytest.MonkeyPatch()
        with patch.context() as patched:
            patched.setattr(store_module.os, "write", stop)
            if crash:
                patched.setattr(store_module.os, "ftruncate", lambda *arguments: None)
            with contextlib.suppress(ResourceExhausted):
                self.ledger.append("audit", {"n": -1})

    @invariant()
    def acknowledged_entries_are_there(self) -> None:
        if self.ledger.exists:
            found = [entry.hash for entry in self.ledger.read().entries]
            assert [digest for digest in found if digest in set(self.acknowledged)] == self.acknowledged
        else:
            assert not self.acknowledged


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
