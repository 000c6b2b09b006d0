"""Killed at any moment, an audit leaves no receipt; the one it goes on to write is the one it would have written."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_atlas.api import AuditOptions, audit
from moe_atlas.auditing import resume as resuming
from moe_atlas.auditing.resume import StateFile
from moe_atlas.auditing.state_file import read_state
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.errors import IntegrityError, ResourceExhausted, UsageError
from scripts.oracle import tiny
from tests.support import pairs

FLOOR = AuditOptions(noise_floor="order", chart_maps=1)
STATE = ".receipt.json.resume"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    # Experts stacked in one tensor, a dense layer first, groups and a selection bias.
    base = tiny.save("deepseek_v3", root / "base", seed=5)
    pairs.variant(base, root / "tuned", pairs.jitter(3e-3, lambda name: "norm" not in name), shards=2)
    pairs.probe(root / "probe")
    reference(root, "plain", AuditOptions())
    reference(root, "floor", FLOOR)
    return root


def reference(root: Path, name: str, options: AuditOptions) -> None:
    (root / name).mkdir()
    audited(root, root / name, options, resume=False)


def audited(root: Path, folder: Path, options: AuditOptions, *, resume: bool = True) -> None:
    path = folder / "receipt.json"
    audit(
        root / "base",
        root / "tuned",
        root / "probe/probes.yaml",
        receipt=path,
        options=options,
        resume=resume,
    )


def result(folder: Path) -> tuple[dict, bytes]:
    """The receipt without its times and its own digest, and the window data's bytes."""
    receipt = json.loads((folder / "receipt.json").read_bytes())
    del receipt["timing"], receipt["evidence"]["receipt_sha256"]
    return receipt, (folder / "receipt.windows.safetensors").read_bytes()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    """Nothing catches it: what an abrupt end leaves on disk is what it leaves."""


def kill_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    """End the audit right after its so-manieth state reached the disk."""
    real, seen = StateFile.save, []

    def save(self, walk, done):
        real(self, walk, done)
        seen.append(done)
        if len(seen) == saves:
            raise Killed

    monkeypatch.setattr(StateFile, "save", save)


@pytest.mark.parametrize(
    ("name", "options", "boundary"),
    [("plain", AuditOptions(), n) for n in range(1, 4)] + [("floor", FLOOR, n) for n in range(1, 7)],
)
def test_killed_at_every_layer_boundary_the_receipt_is_the_same(
    place, tmp_path, monkeypatch, name, options, boundary
):
    with monkeypatch.context() as patched:
        kill_after(patched, boundary)
        with pytest.raises(Killed):
            audited(place, tmp_path, options)
    assert not [file for file in left(tmp_path) if not file.startswith(".receipt.json.")]
    audited(place, tmp_path, options)
    assert result(tmp_path) == result(place / name)
    assert left(tmp_path) == ["receipt.json", "receipt.windows.safetensors"]


def test_killed_at_every_boundary_in_turn(place, tmp_path, monkeypatch):
    for _ in range(3):
        with monkeypatch.context() as patched:
            kill_after(patched, 1)
            with pytest.raises(Killed):
                audited(place, tmp_path, AuditOptions())
    assert read_state(tmp_path / STATE)[0]["done"] == 3
    audited(place, tmp_path, AuditOptions())
    assert result(tmp_path) == result(place / "plain")


def interrupted(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, at: int = 2) -> None:
    with monkeypatch.context() as patched:
        kill_after(patched, at)
        with pytest.raises(Killed):
            audited(place, folder, AuditOptions())


def test_a_state_that_both_checkpoints_share_is_kept_once_and_shared_again(place, tmp_path, monkeypatch):
    """What is written after a layer: two states of the windows until the checkpoints part, one as long as not."""
    root = tmp_path / "late"
    shutil.copytree(place / "base", root / "base")
    shutil.copytree(place / "probe", root / "probe")
    last = pairs.jitter(3e-3, lambda name: "layers.2.mlp" in name)
    pairs.variant(root / "base", root / "tuned", last)
    reference(root, "plain", AuditOptions())
    kept = []
    for _ in range(3):  # of every resumed audit as of the first
        interrupted(root, tmp_path, monkeypatch, at=1)
        kept.append({name.split(".")[0] for name in read_state(tmp_path / STATE)[1] if "array:" not in name})
    assert kept == [{"base"}, {"base"}, {"base", "tuned"}]
    audited(root, tmp_path, AuditOptions())
    assert result(tmp_path) == result(root / "plain")


def test_what_was_done_is_not_done_again(place, tmp_path, monkeypatch):
    interrupted(place, tmp_path, monkeypatch)
    saved = []
    real = StateFile.save
    monkeypatch.setattr(
        StateFile, "save", lambda self, walk, done: (saved.append(done), real(self, walk, done))
    )
    audited(place, tmp_path, AuditOptions())
    assert saved == [3]


def test_without_the_option_nothing_is_kept(place, tmp_path, monkeypatch):
    def forbidden(*_):
        raise AssertionError

    monkeypatch.setattr(resuming, "write_state", forbidden)
    audited(place, tmp_path, AuditOptions(), resume=False)
    assert left(tmp_path) == ["receipt.json", "receipt.windows.safetensors"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (AuditOptions(threads=2), "the options"),
        (AuditOptions(dtype="bfloat16"), "the options"),
        (AuditOptions(router="native"), "the options"),
        (AuditOptions(chart_maps=1), "the options"),
        (AuditOptions(noise_floor="order"), "the noise floor"),
    ],
)
def test_other_options_are_refused_and_named(place, tmp_path, monkeypatch, options, named):
    interrupted(place, tmp_path, monkeypatch)
    with pytest.raises(UsageError, match="E_RESUME") as caught:
        audited(place, tmp_path, options)
    assert named in caught.value.problem
    assert "receipt.json" not in left(tmp_path)
    audited(place, tmp_path, AuditOptions())
    assert result(tmp_path) == result(place / "plain")


def test_another_version_is_refused(place, tmp_path, monkeypatch):
    interrupted(place, tmp_path, monkeypatch)
    monkeypatch.setattr(resuming, "__version__", "0.0.0")
    with pytest.raises(UsageError, match="the software differ"):
        audited(place, tmp_path, AuditOptions())


def test_another_registration_is_refused(place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "copy")
    interrupted(tmp_path / "copy", tmp_path, monkeypatch)
    pairs.probe(tmp_path / "copy/probe", policy=pairs.POLICY | {"confidence": 0.9})
    with pytest.raises(UsageError, match="the probe registration differ"):
        audited(tmp_path / "copy", tmp_path, AuditOptions())


def test_a_changed_header_or_config_is_refused(place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "copy")
    interrupted(tmp_path / "copy", tmp_path, monkeypatch)
    pairs.variant(tmp_path / "copy/tuned", tmp_path / "copy/other", lambda tensors: None, shards=3)
    shutil.rmtree(tmp_path / "copy/tuned")
    (tmp_path / "copy/other").rename(tmp_path / "copy/tuned")
    with pytest.raises(UsageError, match="the tuned checkpoint differ"):
        audited(tmp_path / "copy", tmp_path, AuditOptions())


@pytest.mark.parametrize("where", ["consumed", "ahead"])
def test_changed_bytes_are_noticed_where_they_were_consumed(place, tmp_path, monkeypatch, where):
    """Size and time of the file are as before: only reading again can tell. What lies ahead is read anyway."""
    shutil.copytree(place, tmp_path / "copy")
    root = tmp_path / "copy"
    interrupted(root, tmp_path, monkeypatch)
    names = sorted(open_checkpoint(root / "base").tensors)
    name = next(
        n for n in names if ("layers.1." if where == "consumed" else "layers.2.") in n and "norm" in n
    )
    tensor = open_checkpoint(root / "base").tensors[name]
    file = root / "base" / tensor.file
    before, raw = file.stat(), bytearray(file.read_bytes())
    raw[tensor.begin] ^= 1
    file.write_bytes(raw)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    if where == "consumed":
        with pytest.raises(IntegrityError, match="E_CHANGED"):
            audited(root, tmp_path, AuditOptions())
        assert "receipt.json" not in left(tmp_path)
    else:
        audited(root, tmp_path, AuditOptions())
        found = result(tmp_path)[0]["checkpoints"]["base"]["digest"]
        assert found != result(place / "plain")[0]["checkpoints"]["base"]["digest"]


def test_a_resumed_audit_replaces_no_receipt_but_its_own(place, tmp_path, monkeypatch):
    interrupted(place, tmp_path, monkeypatch)
    other = pairs.variant(
        place / "base", tmp_path / "other", pairs.jitter(1e-3, lambda name: "experts" in name)
    )
    probe, path = place / "probe/probes.yaml", tmp_path / "receipt.json"
    audit(place / "base", other, probe, receipt=path)  # another pair takes the place meanwhile
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("moe_atlas.auditing.run.measure", None)  # refused before any work
        with pytest.raises(UsageError, match=r"E_EXISTS .*receipt\.json: is there already"):
            audited(place, tmp_path, AuditOptions())
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(UsageError, match=r"E_EXISTS .*receipt\.windows\.safetensors: is there already"):
        audited(place, tmp_path, AuditOptions())
    (tmp_path / "receipt.windows.safetensors").unlink()
    audited(place, tmp_path, AuditOptions())
    assert result(tmp_path) == result(place / "plain")


def test_any_damage_of_the_state_is_noticed(place, tmp_path, monkeypatch):
    interrupted(place, tmp_path, monkeypatch)
    path = tmp_path / STATE
    raw = path.read_bytes()
    for position in range(0, len(raw), 997):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        with pytest.raises(IntegrityError, match="E_RESUME"):
            read_state(path)
    for cut in (0, 1, 20, len(raw) - 1):
        path.write_bytes(raw[:cut])
        with pytest.raises(IntegrityError, match="E_RESUME"):
            read_state(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(IntegrityError, match="E_RESUME"):
        audited(place, tmp_path, AuditOptions())


def test_a_state_that_is_no_file_neither_hangs_nor_is_written_through(place, tmp_path):
    os.mkfifo(tmp_path / STATE)
    with pytest.raises(IntegrityError, match="E_RESUME"):
        audited(place, tmp_path, AuditOptions())
    (tmp_path / STATE).unlink()
    (tmp_path / "other").write_bytes(b"kept")
    (tmp_path / f"{STATE}.tmp").symlink_to("other")
    with pytest.raises(UsageError, match="E_WRITE"):
        audited(place, tmp_path, AuditOptions())
    assert (tmp_path / "other").read_bytes() == b"kept"


def test_a_full_disk_keeps_the_state_before_and_leaves_nothing_else(place, tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:  # file and folder of the first state, then the second
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ResourceExhausted, match="E_DISK"):
            audited(place, tmp_path, AuditOptions())
    assert left(tmp_path) == [STATE]
    audited(place, tmp_path, AuditOptions())
    assert result(tmp_path) == result(place / "plain")


def test_killed_between_the_receipt_and_its_record_it_may_be_written_again(place, tmp_path, monkeypatch):
    from moe_atlas.ledger.recording import Recording

    with monkeypatch.context() as patched:
        patched.setattr(Recording, "record", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            audited(place, tmp_path, AuditOptions())
    assert "receipt.json" in left(tmp_path)
    audited(place, tmp_path, AuditOptions())
    assert result(tmp_path) == result(place / "plain")
    with pytest.raises(UsageError, match="E_EXISTS"):  # that audit is over: this would replace its receipt
        audited(place, tmp_path, AuditOptions())


# --- processes -------------------------------------------------------------------------------------------------

SLOWED = """\
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
from moe_atlas import cli
from moe_atlas.auditing import loop
real = loop.record_weights
def slowed(*arguments):
    time.sleep(0.25)
    return real(*arguments)
loop.record_weights = slowed
cli.main()
"""


def start(place: Path, folder: Path, *extra: str, slowly: bool = False) -> subprocess.Popen:
    command = [sys.executable, *(("-c", SLOWED) if slowly else ("-m", "moe_atlas")), "audit", "--quiet"]
    command += [str(place / "base"), str(place / "tuned"), "--probe", str(place / "probe/probes.yaml")]
    command += ["--receipt", str(folder / "receipt.json"), "--resume", *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_state(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not (folder / STATE).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_signals_stop_cleanly_within_seconds(place, tmp_path, number, code):
    process = start(place, tmp_path, slowly=True)
    until_state(tmp_path, process)
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert time.monotonic() - began < 10
    assert "Traceback" not in err
    assert [name for name in left(tmp_path) if not name.endswith(".tmp")] == [STATE]
    if number != signal.SIGKILL:
        assert err == "atlas: stopped before a result was acknowledged\n"
        assert left(tmp_path) == [STATE]
    audited(place, tmp_path, AuditOptions())
    assert result(tmp_path) == result(place / "plain")


def kill_at_random(place: Path, folder: Path, kills: int, seed: int) -> int:
    """Kill -9 an audit again and again, then let it finish; returns how many kills hit a living process."""
    generator, hits = random.Random(seed), 0
    for _ in range(kills):
        process = start(place, folder, slowly=True)
        if generator.random() < 0.7:
            until_state(folder, process)
        time.sleep(generator.random() * 1.2)
        process.kill()
        process.communicate()
        hits += process.returncode == -9
        if (folder / "receipt.json").exists():  # killed after the receipt stood whole, or not at all
            break
    else:
        final = start(place, folder)
        _, err = final.communicate(timeout=300)
        assert final.returncode in (0, 1, 3), err
    return hits


@pytest.mark.parametrize(("rounds", "kills"), [(1, 2), pytest.param(25, 4, marks=pytest.mark.slow)])
def test_killed_at_random_times_the_receipt_is_the_same(place, tmp_path, rounds, kills):
    hits = 0
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        hits += kill_at_random(place, folder, kills, seed=number)
        assert result(folder) == result(place / "plain")
        assert not (folder / STATE).exists()
    print(f"{hits} kill -9 in {rounds} audits: all receipts equal the uninterrupted one")
    assert hits
