"""What no verifier could hold is refused before the work; what memory cannot hold ends in exit 6, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_atlas import cli
from moe_atlas.cli import run
from moe_atlas.errors import InputRefused, ResourceExhausted, out_of_memory
from moe_atlas.probes import load_registered, registration
from moe_atlas.receipt import write
from moe_atlas.receipt.verify import verify
from moe_atlas.system import bounded_read, limits
from moe_atlas.system.bounded_read import Unreadable, read_regular
from scripts.oracle import tiny
from tests.receipt import synthetic
from tests.support import pairs

SPACE = 3 << 30  # address space, bytes: less than the 8 GiB that window data may be long

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({space}, {space}))
from moe_atlas.cli import main
sys.argv = ["atlas", *sys.argv[1:]]
main()
"""


def limited(space: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command line in a process of bounded address space."""
    return subprocess.run(
        [sys.executable, "-c", LIMITED.format(space=space), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def receipt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    facts, windows = synthetic.audit()
    path = tmp_path_factory.mktemp("r") / "receipt.json"
    write.write_receipt(facts, windows, path)
    return path


def test_a_small_receipt_is_verified_in_little_address_space(receipt: Path) -> None:
    done = limited(SPACE, "verify", str(receipt), "--integrity-only")
    assert done.returncode == 0, done.stderr


def test_an_audit_and_its_report_end_well_in_little_address_space(tmp_path: Path) -> None:
    base = tiny.save("qwen3_moe", tmp_path / "base", seed=1)
    tuned = pairs.variant(base, tmp_path / "tuned", pairs.jitter(0.01, lambda name: "experts" in name))
    probe = pairs.probe(tmp_path / "probe", documents=6)
    out = tmp_path / "receipt.json"
    done = limited(
        7 << 30, "audit", str(base), str(tuned), "--probe", str(probe), "--receipt", str(out), "--quiet"
    )
    assert done.returncode in (1, 3), done.stderr
    done = limited(SPACE, "report", str(out), "-o", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()


def test_a_file_is_read_in_memory_that_follows_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, count: asked.append(count) or real(descriptor, count))
    (tmp_path / "f").write_bytes(b"x" * 1000)
    assert read_regular(tmp_path / "f", 8 << 30) == b"x" * 1000
    assert max(asked) <= 1001


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 1000])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_the_limit_holds_to_the_byte(
    length: int, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_read, "_PIECE", piece)
    (tmp_path / "f").write_bytes(bytes(range(256)) * 4)
    os.truncate(tmp_path / "f", length)
    if length > 100:
        with pytest.raises(Unreadable) as caught:
            read_regular(tmp_path / "f", 100)
        assert caught.value.kind == "long"
    else:
        assert read_regular(tmp_path / "f", 100) == (bytes(range(256)) * 4)[:length]


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x" * 50)
    real = os.read

    def grows(descriptor: int, count: int) -> bytes:
        with file.open("ab") as more:
            more.write(b"y" * 10)
        return real(descriptor, count)

    monkeypatch.setattr(os, "read", grows)
    with pytest.raises(Unreadable, match="long"):
        read_regular(file, 100)


def no_memory(*_: object, **__: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_word_for_no_memory_is_exit_six_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli.typer.main, "get_command", lambda app: type("C", (), {"main": fails}))
    assert run(["verify"]) == 6
    printed = capsys.readouterr().err
    assert printed.startswith("atlas: E_MEMORY ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("out of memory"), OSError(2, "no")]
)
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    assert not out_of_memory(error)


def test_verify_without_memory_is_exit_six_and_no_mismatch(
    receipt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_atlas.receipt.verify.derive", no_memory)
    assert run(["verify", str(receipt)]) == 6
    assert run(["report", str(receipt)]) == 6


def test_a_finished_audit_that_cannot_be_read_back_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, windows = synthetic.audit()
    path = tmp_path / "receipt.json"
    with monkeypatch.context() as patch:
        patch.setattr(write, "verify", no_memory)
        with pytest.raises(ResourceExhausted, match="E_MEMORY") as caught:
            write.write_receipt(facts, windows, path)
    assert f"atlas verify {path}" in caught.value.next_step
    assert not verify(path).mismatches


def test_without_memory_to_derive_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, windows = synthetic.audit()
    monkeypatch.setattr(write, "derive", no_memory)
    with pytest.raises(ResourceExhausted, match="E_MEMORY"):
        write.write_receipt(facts, windows, tmp_path / "receipt.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", ["MAX_RECEIPT_BYTES", "MAX_WINDOW_BYTES"])
def test_a_receipt_that_nobody_could_read_is_not_written(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, windows = synthetic.audit()
    monkeypatch.setattr(write, limit, 1000)
    with pytest.raises(InputRefused, match="E_PROBE_SIZE"):
        write.write_receipt(facts, windows, tmp_path / "receipt.json")
    assert list(tmp_path.iterdir()) == []


def test_what_no_verifier_holds_is_refused_at_registration_and_before_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pairs.probe(tmp_path, documents=40)  # 80 documents, 300 resamples
    assert run(["register", str(path), "--force"]) == 0
    monkeypatch.setattr(limits, "MAX_CELLS", 80 * 300 - 1)
    capsys.readouterr()
    assert run(["register", str(path), "--force"]) == 4
    error = capsys.readouterr().err
    assert "E_PROBE_SIZE" in error
    assert "80 documents times 300 resamples are 24000" in error
    assert "at most 79 documents, or at most 299 resamples" in error
    with pytest.raises(InputRefused, match="E_PROBE_SIZE"):
        load_registered(path)
    monkeypatch.setattr(limits, "MAX_CELLS", 80 * 300)
    assert len(load_registered(path).windows) == 80


def test_a_lock_that_nobody_could_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pairs.probe(tmp_path, documents=40)
    before = path.with_name("probes.lock.json").read_bytes()
    path.write_text(path.read_text().replace("seed: 7", "seed: 8"))
    monkeypatch.setattr(registration, "MAX_LOCK_BYTES", 1000)
    with pytest.raises(InputRefused, match="E_PROBE_SIZE"):
        registration.register(path, force=True)
    assert path.with_name("probes.lock.json").read_bytes() == before


@pytest.mark.parametrize("limit", ["MAX_WINDOW_BYTES", "MAX_RECEIPT_BYTES"])
@pytest.mark.parametrize("command", ["plan", "audit"])
def test_what_would_be_too_long_to_verify_is_refused_before_the_work(
    limit: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = tiny.save("qwen3_moe", tmp_path / "base", seed=1)
    probe = pairs.probe(tmp_path / "probe", documents=6)
    monkeypatch.setattr("moe_atlas.auditing.run.prepare", no_memory)
    monkeypatch.setattr(limits, limit, 1000)
    assert run([command, str(base), str(base), "--probe", str(probe)]) == 4
    assert "E_PROBE_SIZE" in capsys.readouterr().err


def test_the_estimates_stay_below_what_an_audit_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is certain to fail is refused beforehand; and the estimate says something."""
    base = tiny.save("qwen3_moe", tmp_path / "base", seed=1)
    probe = pairs.probe(tmp_path / "probe", documents=40)
    out = tmp_path / "receipt.json"
    facts, arrays = pairs.audited(base, base, probe)
    write.write_receipt(facts | {"parent": None}, write.as_arrays(arrays), out)
    experts = [layer["experts"] for layer in facts["layers"]]
    sizes = {"MAX_WINDOW_BYTES": write.window_path(out), "MAX_RECEIPT_BYTES": out}
    for limit, file in sizes.items():
        length = file.stat().st_size
        with monkeypatch.context() as patch:
            patch.setattr(limits, limit, length)
            limits.require_room(experts, (80, 80), 2, [[], []], "p")
            patch.setattr(limits, limit, length // 8)
            with pytest.raises(InputRefused, match="E_PROBE_SIZE"):
                limits.require_room(experts, (80, 80), 2, [[], []], "p")
