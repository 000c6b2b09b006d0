"""From facts to two files on disk and back: atomic, verified, and every change noticed."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_atlas.derivation.derive import derive
from moe_atlas.errors import AtlasError, Exit, InputRefused, IntegrityError, ResourceExhausted, UsageError
from moe_atlas.receipt import verify as verifying
from moe_atlas.receipt import write as writing
from moe_atlas.receipt.canonical import encode_receipt, receipt_digest, sealed
from moe_atlas.receipt.files import window_path
from moe_atlas.receipt.reference import attempt_facts, reference_facts
from moe_atlas.receipt.verify import VerifyReport, intact_receipt, verify
from moe_atlas.receipt.window_file import decode_windows, encode_windows
from moe_atlas.receipt.write import write_receipt
from moe_atlas.results import Receipt
from tests.receipt import synthetic

Case = tuple[dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def small() -> Case:
    facts = synthetic.facts(layers=(1, 2), experts=4)
    facts["probe"]["policy"]["resamples"] = 60
    for domain, documents in zip(facts["probe"]["domains"], (3, 3, 1, 2), strict=True):
        domain["documents"] = documents
    windows = synthetic.windows(facts)
    return facts, windows


@pytest.fixture
def written(small: Case, tmp_path: Path) -> Path:
    path = tmp_path / "receipt.json"
    write_receipt(*small, path)
    return path


def paths(report: VerifyReport) -> list[str]:
    return [one.path for one in report.mismatches]


def test_what_is_written_verifies(written: Path, small: Case) -> None:
    report = verify(written)
    assert report.mismatches == []
    assert (report.kind, report.verdict) == ("audit", report.receipt["verdict"])
    assert sorted(os.listdir(written.parent)) == ["receipt.json", "receipt.windows.safetensors"]
    evidence = json.loads(written.read_bytes())["evidence"]
    assert evidence["windows"] == "receipt.windows.safetensors"
    assert evidence["sha256"] == hashlib.sha256(window_path(written).read_bytes()).hexdigest()


def test_the_receipt_carries_its_own_digest(written: Path) -> None:
    receipt = json.loads(written.read_bytes())
    own = receipt["evidence"]["receipt_sha256"]
    receipt["evidence"]["receipt_sha256"] = ""
    assert hashlib.sha256(json.dumps(receipt, indent=1).encode() + b"\n").hexdigest() == own


def test_writing_twice_gives_equal_bytes(written: Path, small: Case, tmp_path: Path) -> None:
    other = tmp_path / "again" / "receipt.json"
    other.parent.mkdir()
    write_receipt(*small, other)
    assert other.read_bytes() == written.read_bytes()
    assert window_path(other).read_bytes() == window_path(written).read_bytes()


def test_an_existing_receipt_is_kept_unless_forced(written: Path, small: Case) -> None:
    before = written.read_bytes()
    with pytest.raises(UsageError, match="E_EXISTS"):
        write_receipt(*small, written)
    assert written.read_bytes() == before
    facts = copy.deepcopy(small[0]) | {"controls": {"parameter_distance": 0.5}}
    write_receipt(facts, small[1], written, force=True)
    assert written.read_bytes() != before
    assert verify(written).mismatches == []


@pytest.mark.parametrize("name", ["receipt", "receipt.txt", "receipt.JSON", "", ".", ".json"])
def test_a_receipt_ends_in_json(small: Case, tmp_path: Path, name: str) -> None:
    """Receipts that differ in their suffix alone would share window data, and a ledger looks for ``*.json``."""
    with pytest.raises(UsageError, match="E_RECEIPT_NAME"):
        write_receipt(*small, tmp_path / name if name else Path(name))
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_usage(small: Case, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E_NO_FOLDER"):
        write_receipt(*small, tmp_path / "nowhere" / "receipt.json")


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (errno.ENOSPC, ResourceExhausted, "E_DISK"),
        (errno.EDQUOT, ResourceExhausted, "E_DISK"),
        (errno.EROFS, UsageError, "E_WRITE"),
    ],
)
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_neither_file(
    small: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type,
    code: str,
    call: int,
    function: str,
) -> None:
    real: Callable[..., Any] = getattr(os, function)
    calls = []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == call:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    monkeypatch.setattr(os, function, failing)
    with pytest.raises(error, match=code):
        write_receipt(*small, tmp_path / "receipt.json")
    assert os.listdir(tmp_path) == []


def test_a_receipt_that_does_not_read_back_is_not_kept(
    small: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writing._install

    def bit_rot(path: Path, receipt: bytes, data: bytes, tokens: bytes | None) -> None:
        real(path, receipt, data[:-1] + bytes([data[-1] ^ 1]), tokens)

    monkeypatch.setattr(writing, "_install", bit_rot)
    with pytest.raises(IntegrityError, match="E_READBACK"):
        write_receipt(*small, tmp_path / "receipt.json")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_while_reading_back_leaves_nothing(
    small: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> VerifyReport:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_receipt(*small, tmp_path / "receipt.json")
    assert os.listdir(tmp_path) == []


# --- every change is noticed -----------------------------------------------------------------------------------


def unnoticed_flips(receipt: Path, target: Path, stride: int) -> list[int]:
    """Positions at which one flipped bit of ``target`` leaves the receipt verifying."""
    raw = target.read_bytes()
    unnoticed = []
    for position in range(0, len(raw), stride):
        mask = 1 << (position // stride % 8)
        target.write_bytes(raw[:position] + bytes([raw[position] ^ mask]) + raw[position + 1 :])
        if not verify(receipt).mismatches:
            unnoticed.append(position)
    return unnoticed


# Window data stay as they are and are not derived again for every byte: digests and form must notice by themselves.
@pytest.mark.parametrize("which", ["receipt", "windows"])
@pytest.mark.parametrize("stride", [199, pytest.param(1, marks=pytest.mark.slow)])
def test_every_single_byte_change_is_noticed(
    written: Path, which: str, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "_rederive", lambda *_: None)
    assert verify(written).mismatches == []
    target = written if which == "receipt" else window_path(written)
    print(f"{len(range(0, target.stat().st_size, stride))} flipped bits, one a byte, in the {which}")
    assert unnoticed_flips(written, target, stride) == []


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
@pytest.mark.parametrize("which", ["receipt", "windows"])
def test_truncation_and_growth_are_noticed(written: Path, cut: int, which: str) -> None:
    target = written if which == "receipt" else window_path(written)
    raw = target.read_bytes()
    target.write_bytes(raw[:cut] if cut >= 0 else raw + b"\n")
    assert verify(written).mismatches


def resealed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Edit a receipt as somebody would who also repairs its digest."""
    receipt = json.loads(path.read_bytes())
    change(receipt)
    receipt["evidence"]["receipt_sha256"] = receipt_digest(receipt)
    path.write_bytes(encode_receipt(receipt))
    return path


def set_in(receipt: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    here: Any = receipt
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here[part]
    here[int(last) if isinstance(here, list) else last] = value


EDITS = [
    ("verdict", "pass"),
    ("predicates.protected_atlas_rewrite.outcome", "preserved"),
    ("predicates.base_domain_damage.passed", True),
    ("predicates.protected_atlas_rewrite.evidence", []),
    ("claims.0.status", "licensed"),
    ("margins.refinement_margin.low", 0.5),
    ("layers.1.pair.content_drift.high", 0.0001),
    ("layers.1.pair.content_drift.pass_high", 0.0001),
    ("layers.1.pair.content_drift.effective_documents", 500.0),
    ("domains.0.nll_increase.pass_high", -1.0),
    ("layers.1.pair.content_drift.simultaneous_low", 0.0),
    ("layers.0.base.load_entropy.estimate", 1.0),
    ("layers.1.tuned.expert_share.0", 0.5),
    ("aggregates.protected.tuned.min_entropy.low", 0.1),
    ("domains.0.nll_increase.high", -1.0),
    ("domains.0.kl.pass_high", -1.0),
    ("domains.0.non_finite_windows", 1),
    ("domains.0.non_finite_layer", 1),
    ("domains.1.non_finite_base", 1),
    ("probe.policy.damage.kl", 0.5),
    ("domains.0.documents", 100),
    ("domains.0.damaged_documents.share_high", 0.0),
    ("probe.policy.rewrite.content", 0.9999),
    ("probe.policy.confidence", 0.9),
    ("probe.windows.seed", 8),
    ("probe.protected_layers", [1]),
    ("probe.domains.0.role", "canary"),
    ("warnings", [{"code": "x", "message": "y"}]),
    ("next_steps", [{"pattern": "x", "object": "y", "first": "z"}]),
]


@pytest.mark.parametrize(("dotted", "value"), EDITS)
def test_an_edited_and_resealed_receipt_does_not_rederive(written: Path, dotted: str, value: Any) -> None:
    report = verify(resealed(written, lambda receipt: set_in(receipt, dotted, value)))
    assert report.mismatches, dotted
    assert "evidence.receipt_sha256" not in paths(report)


def test_every_mismatch_is_listed(written: Path) -> None:
    def change(receipt: dict[str, Any]) -> None:
        set_in(receipt, "layers.1.pair.content_drift.high", 0.0)
        set_in(receipt, "layers.0.pair.boundary_drift.high", 0.0)  # its low bound is 0 already
        set_in(receipt, "domains.1.kl.estimate", 0.0)

    found = paths(verify(resealed(written, change)))
    for expected in (
        "layers[1].pair.content_drift.high",
        "layers[0].pair.boundary_drift.high",
        "domains[1].kl.estimate",
    ):
        assert expected in found


def test_rounding_of_another_machine_is_no_mismatch(written: Path) -> None:
    def change(receipt: dict[str, Any]) -> None:
        shown = receipt["layers"][1]["pair"]["content_drift"]
        for key in ("estimate", "low", "high"):
            shown[key] *= 1 + 1e-12

    found = paths(verify(resealed(written, change)))
    assert not [path for path in found if path.startswith("layers")]


def test_missing_window_data_are_a_mismatch(written: Path) -> None:
    window_path(written).unlink()
    assert paths(verify(written)) == ["evidence.windows"]


def test_window_data_of_another_audit_are_a_mismatch(written: Path, small: Case) -> None:
    other = synthetic.windows(small[0], seed=1)
    window_path(written).write_bytes(encode_windows(other))
    found = paths(verify(written))
    assert "evidence.sha256" in found
    assert any(path.startswith("layers") for path in found)


def test_window_data_that_do_not_fit_are_named(small: Case, tmp_path: Path) -> None:
    facts, windows = small
    receipt = derive(facts, windows)
    path = tmp_path / "receipt.json"
    cases: dict[str, dict[str, np.ndarray]] = {
        "layers.9.pair.content_drift": {"layers.9.pair.content_drift": np.zeros(6)},
        "layers.2.pair.content_drift": {"layers.2.pair.content_drift": np.zeros(7)},
        "layers.2.pair.content": {"layers.2.pair.content": np.zeros(6)},
        "layers.2.pair.flips.inside": {"layers.2.pair.flips.inside": np.zeros(6)},
        "layers.2.base.jump_low.count": {"layers.2.base.jump_low.count": np.full(6, -1, dtype=np.int32)},
        "output.loss": {"output.loss": np.zeros(9)},
        "layers.2.base.counts": {"layers.2.base.counts": np.zeros((6, 5), dtype=np.int32)},
        "layers.1.base.counts": {"layers.1.base.counts": np.full((6, 4), -1, dtype=np.int32)},
        "layers.2.tuned.non_finite": {"layers.2.tuned.non_finite": np.zeros(6, dtype=np.int32)},
        "layers.1.tuned.non_finite": {"layers.1.tuned.non_finite": np.full(9, -1, dtype=np.int32)},
        "layers.1.base.non_finite": {"layers.1.base.non_finite": np.zeros(9)},
        "output.kl": {"output.kl": np.zeros(3)},
        "windows": {"windows.scored": np.zeros(2, dtype=np.int32)},
        "windows.domain": {"windows.domain": np.full(9, 4, dtype=np.int32)},
        "windows.document": {"windows.document": np.full(9, -1, dtype=np.int32)},
    }
    for where, change in cases.items():
        data = encode_windows(windows | change)
        path.write_bytes(encode_receipt(sealed(receipt, "receipt.windows.safetensors", data)))
        window_path(path).write_bytes(data)
        assert where in paths(verify(path)), where


def test_an_absurd_number_of_resamples_is_refused_not_tried(written: Path) -> None:
    many = resealed(written, lambda receipt: set_in(receipt, "probe.policy.resamples", 10**12))
    assert paths(verify(many)) == ["probe.policy.resamples"]


# --- hostile receipts ------------------------------------------------------------------------------------------

HOSTILE = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b'{"a":1,"a":2}',
    b'{"verdict":"pass"}',
    b"\xff\xfe",
    b'{"x":NaN}',
    b'{"x":1e999}',
    b'{"x":' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"schema":"atlas/receipt/v1","kind":"audit","verdict":"pass"}',
]


@pytest.mark.parametrize("raw", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_receipts_are_mismatches(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(raw)
    assert verify(path).mismatches


JUNK = [None, True, -1, 10**400, 1e308, "", "x" * 100, [], {}, [[[]]], {"estimate": "high"}]


# What the audit wrote down beside its measurements: nothing follows from it, its digest alone guards it.
FREE = (
    "evidence",
    "method",
    "environment",
    "timing",
    "controls",
    "parent",
    "noise_floor",
    "reference",
    "attempts",
)
FREE_INSIDE = ("probe.evaluation", "probe.name", "identity.layers", "weights.tensors")
DERIVED = ("verdict", "predicates", "claims", "next_steps", "warnings", "margins", "aggregates", "domains")


@pytest.mark.parametrize("value", JUNK, ids=range(len(JUNK)))
def test_junk_anywhere_is_a_mismatch_and_never_a_crash(
    written: Path, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = json.loads(written.read_bytes())
    facts = {key: part for key, part in original.items() if key not in DERIVED}
    fresh = derive(original, decode_windows(window_path(written).read_bytes(), "windows"))

    def derived(receipt: dict[str, Any], windows: Any) -> dict[str, Any]:
        """No derived key is read (proved elsewhere), so junk in one need not be derived from again."""
        changed = any(receipt[key] != facts[key] for key in facts if key != "evidence")
        return derive(receipt, windows) if changed else fresh

    monkeypatch.setattr(verifying, "derive", derived)
    for dotted in junk_places(original):
        changed = copy.deepcopy(original)
        set_in(changed, dotted, value)
        if changed == original:
            continue
        changed["evidence"]["receipt_sha256"] = receipt_digest(changed)
        written.write_bytes(encode_receipt(changed))
        report = verify(written)
        assert report.mismatches or dotted.split(".")[0] in FREE or dotted in FREE_INSIDE, dotted


def junk_places(receipt: dict[str, Any]) -> list[str]:
    """Every key of the receipt but its evidence and the version of its rules, and every key inside an object."""
    inner = [f"{key}.{name}" for key, part in receipt.items() if isinstance(part, dict) for name in part]
    return [place for place in (*receipt, *inner) if place.split(".")[0] not in ("evidence", "derivation")]


def test_no_receipt_is_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E_NO_FILE"):
        verify(tmp_path / "receipt.json")


def test_folders_and_pipes_are_refused_without_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputRefused, match="E_NOT_REGULAR|E_READ"):
            verify(target)


def test_an_oversized_receipt_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "MAX_RECEIPT_BYTES", 100)
    with pytest.raises(InputRefused, match="E_SIZE"):
        verify(written)


def test_a_window_name_cannot_leave_the_folder(written: Path) -> None:
    name = "../receipt.windows.safetensors"
    report = verify(resealed(written, lambda receipt: set_in(receipt, "evidence.windows", name)))
    assert "evidence.windows" in paths(report)


def test_a_deterministic_error_while_deriving_is_a_mismatch(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(verifying, "derive", broken)
    report = verify(written)
    assert "ZeroDivisionError" in report.mismatches[0].problem


def test_a_renamed_receipt_keeps_its_own_window_data(written: Path, small: Case) -> None:
    """They are those it records, not those that happen to lie under its new name; and those bytes alone."""
    renamed = written.rename(written.with_name("monday.json"))
    another = small[0], synthetic.windows(small[0], seed=1), written
    with pytest.raises(UsageError, match=r"E_EXISTS .*receipt\.windows\.safetensors"):
        write_receipt(*another)
    write_receipt(*another, force=True)  # now recorded.windows are another's
    other = written.rename(written.with_name("tuesday.json"))
    window_path(written).rename(window_path(renamed))
    assert verify(renamed).mismatches
    with pytest.raises(IntegrityError, match="E_RECEIPT"):
        Receipt.load(renamed)
    window_path(written).write_bytes(encode_windows(small[1]))
    loaded = Receipt.load(renamed)
    assert all(
        np.array_equal(array, small[1][name], equal_nan=True) for name, array in loaded.windows().items()
    )
    window_path(written).write_bytes(window_path(renamed).read_bytes())
    with pytest.raises(IntegrityError, match="E_WINDOWS"):
        loaded.windows()
    assert Receipt.load(other).windows()


# --- earlier receipts ------------------------------------------------------------------------------------------


def test_a_baseline_lends_its_levels(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    receipt = write_receipt(*synthetic.baseline(), path)
    reference = reference_facts(path)
    assert reference is not None
    assert [layer["layer"] for layer in reference["layers"]] == [1, 2, 4]
    assert reference["layers"][0]["overlap"] == receipt["layers"][0]["base"]["overlap"]["estimate"]
    assert reference["receipt_sha256"] == receipt["evidence"]["receipt_sha256"]
    assert reference_facts(None) is None
    facts, windows = synthetic.audit()
    facts["reference"] = reference
    write_receipt(facts, windows, tmp_path / "audit.json")
    with pytest.raises(UsageError, match="E_KIND"):
        attempt_facts(path)


def test_an_attempt_lends_its_outcome(tmp_path: Path) -> None:
    path = tmp_path / "attempt.json"
    receipt = write_receipt(*synthetic.audit(), path)
    facts = attempt_facts(path)
    assert facts["protected_atlas_rewrite"] == "preserved"
    assert facts["task_reached"] is True
    assert facts["nothing_tuned"] is False
    assert facts["lock_digest"] == synthetic.SHA
    assert facts["receipt_sha256"] == receipt["evidence"]["receipt_sha256"]
    with pytest.raises(UsageError, match="E_KIND"):
        reference_facts(path)


@pytest.mark.parametrize("allow", [[], ["identical"]])
def test_an_audit_of_nothing_is_no_attempt(tmp_path: Path, allow: list[str]) -> None:
    facts, windows = synthetic.audit()
    facts["probe"]["policy"]["allow"] = allow
    facts["identity"]["identical_checkpoints"] = True
    write_receipt(facts, windows, tmp_path / "attempt.json")
    with pytest.raises(UsageError, match="E_ATTEMPT.*attempt.json.*nothing was attempted"):
        attempt_facts(tmp_path / "attempt.json")


def test_an_attempt_says_whether_it_improved_the_task(tmp_path: Path) -> None:
    facts, windows = synthetic.audit()
    task = windows["windows.domain"] == 3
    for number, (change, improved) in enumerate([(-0.3, True), (0.3, False)]):
        noise = np.random.default_rng(1).normal(0, 0.01, int(task.sum()))
        windows["output.nll_tuned"] = windows["output.nll_tuned"].copy()
        windows["output.nll_tuned"][task] = windows["output.nll_base"][task] + change + noise
        write_receipt(facts, windows, tmp_path / f"{number}.json")
        assert attempt_facts(tmp_path / f"{number}.json")["task_improved"] is improved


def test_an_earlier_receipt_must_verify(written: Path) -> None:
    resealed(written, lambda receipt: set_in(receipt, "verdict", "pass"))
    for use in (intact_receipt, attempt_facts, reference_facts):
        with pytest.raises(IntegrityError, match="E_RECEIPT"):
            use(written)


# --- the command -----------------------------------------------------------------------------------------------


def run_verify(*arguments: object) -> tuple[int, str]:
    code = (
        "import sys, typer\n"
        "from moe_atlas.cli.receipts.verify import verify\n"
        "from moe_atlas.errors import AtlasError\n"
        "app = typer.Typer(); app.command()(verify)\n"
        "try:\n"
        "    result = typer.main.get_command(app).main(sys.argv[1:], standalone_mode=False)\n"
        "except AtlasError as error:\n"
        "    print(error); result = int(error.exit_code)\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(result)\n"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_the_command_exits_with_the_verdict_of_an_intact_receipt(tmp_path: Path) -> None:
    passing, failing, open_, base = (tmp_path / f"{name}.json" for name in ("pass", "fail", "open", "base"))
    write_receipt(*synthetic.audit(), passing)
    write_receipt(*synthetic.audit(scale=60.0), failing)
    facts, windows = synthetic.audit()
    windows["layers.2.pair.content_drift"][:] = np.nan
    write_receipt(facts, windows, open_)
    write_receipt(*synthetic.baseline(), base)
    expected = [(passing, Exit.PASS), (failing, Exit.FAIL)]
    expected += [(open_, Exit.INCONCLUSIVE), (base, Exit.INCONCLUSIVE)]  # a baseline compares nothing
    for path, code in expected:
        assert run_verify(path)[0] == code, path
        assert run_verify(path, "--integrity-only")[0] == Exit.PASS
    assert "intact, baseline" in run_verify(base)[1]
    assert "intact, verdict fail" in run_verify(failing)[1]
    code, out = run_verify(failing, "--json")
    assert (code, json.loads(out)["verdict"], json.loads(out)["intact"]) == (1, "fail", True)
    resealed(failing, lambda receipt: set_in(receipt, "verdict", "pass"))
    for extra in ((), ("--integrity-only",), ("--json",)):
        assert run_verify(failing, *extra)[0] == Exit.CHANGED
    assert "verdict: expected 'fail', found 'pass'" in run_verify(failing)[1]


def test_the_command_refuses_what_is_not_there(tmp_path: Path) -> None:
    assert run_verify(tmp_path / "receipt.json")[0] == Exit.USAGE
    assert run_verify(tmp_path)[0] == Exit.REFUSED


def test_errors_are_atlas_errors_only(tmp_path: Path) -> None:
    with pytest.raises(AtlasError):
        verify(tmp_path / ("x" * 300))
