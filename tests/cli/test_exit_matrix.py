"""The exit-code matrix: every class of error, for every command, whatever becomes of its output.

One row is a command line; its cells are {python, python -O} × {output read, closed, its reader gone, disk full}. A
cell is fail-open when it exits with 0 and its row may not. The fast run takes one cell of every row, the slow run all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from moe_atlas.cli import run
from moe_atlas.ledger import Ledger
from moe_atlas.receipt.canonical import encode_receipt, receipt_digest
from moe_atlas.receipt.write import write_receipt
from scripts.oracle import tiny
from tests.receipt import synthetic
from tests.support import pairs

WORKER = Path(__file__).with_name("exit_worker.py")
OUTPUTS = ("file", "closed", "pipe", "full")
INTERPRETERS = {"python": [], "python -O": ["-O"]}
# A verdict that is already on disk stands, whatever happens to the words about it.
RECORDING = ("audit", "baseline")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Good and bad inputs of every kind, side by side."""
    root = tmp_path_factory.mktemp("matrix")
    checkpoints(root)
    probes(root)
    receipts(root)
    ledgers(root)
    return root


def checkpoints(root: Path) -> None:
    base = tiny.save("qwen3_moe", root / "base", seed=5)
    pairs.variant(base, root / "light", pairs.jitter(3e-3, lambda name: "self_attn" in name))
    pairs.variant(base, root / "hard", pairs.jitter(0.5, lambda name: "norm" not in name))
    tiny.save("qwen3_moe", root / "other", num_experts=6)

    def poison(tensors):
        tensors["model.layers.1.mlp.experts.7.up_proj.weight"][0, 0] = torch.nan

    pairs.variant(base, root / "nan", poison)

    def copy(name: str) -> Path:
        shutil.copytree(base, root / name)
        return root / name / "model.safetensors"

    whole = (base / "model.safetensors").read_bytes()
    copy("cut").write_bytes(whole[:-100])
    copy("grown").write_bytes(whole + b"\0")
    copy("empty-shard").write_bytes(b"")
    copy("garbage").write_bytes(b"\xff" * 1000)
    copy("huge-header").write_bytes((1 << 40).to_bytes(8, "little") + whole[8:])
    copy("pickle").write_bytes(b"\x80\x04" + whole)
    fifo = copy("fifo")
    fifo.unlink()
    os.mkfifo(fifo)
    link = copy("link")
    link.unlink()
    link.symlink_to("/dev/zero")
    copy("no-config").with_name("config.json").unlink()
    config = copy("bad-config").with_name("config.json")
    config.write_text(config.read_text().replace("{", '{"model_type": "nope", ', 1))
    family = copy("unknown-family").with_name("config.json")
    family.write_text(
        json.dumps(json.loads(family.read_text()) | {"model_type": "nope", "architectures": ["No"]})
    )
    shutil.copytree(root / "hard", root / "other-config")
    config = root / "other-config/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_experts_per_tok": 1}))
    (root / "empty-folder").mkdir()


def probes(root: Path) -> None:
    good = pairs.probe(root / "probe")
    pairs.probe(root / "few", documents=12)
    pairs.probe(root / "vocabulary", vocab=60)

    def variant(name: str, change=lambda text: text, lock: bool = True) -> None:
        shutil.copytree(good.parent, root / name)
        path = root / name / "probes.yaml"
        path.write_text(change(path.read_text()))
        if not lock:
            path.with_suffix(".lock.json").unlink()

    variant("unregistered", lock=False)
    variant("empty", lambda text: "")
    variant("no-domains", lambda text: yaml.safe_dump(yaml.safe_load(text) | {"domains": []}))
    variant("twice", lambda text: text + "name: again\n")
    variant("alias", lambda text: text.replace("name: tiny", "name: &a tiny\nx: *a"))
    variant("widened", lambda text: text.replace("boundary: 0.08", "boundary: 0.8"))
    variant("no-source")
    (root / "no-source/prose.jsonl").unlink()
    variant("no-windows")
    (root / "no-windows/prose.jsonl").write_text("")
    variant("short-document")
    (root / "short-document/prose.jsonl").write_text('{"tokens": [1]}\n' * 40)
    variant("torn-lock")
    lock = root / "torn-lock/probes.lock.json"
    lock.write_bytes(lock.read_bytes()[:-50])
    policy = {"schema": "atlas/policy/v1", "name": "strict", "policy": pairs.POLICY | {"confidence": 0.99}}
    (root / "policy.yaml").write_text(yaml.safe_dump(policy))


def receipts(root: Path) -> None:
    write_receipt(*synthetic.audit(), root / "pass.json")
    write_receipt(*synthetic.audit(scale=60.0), root / "fail.json")
    facts, windows = synthetic.audit()
    windows["layers.2.pair.content_drift"][:] = float("nan")
    write_receipt(facts, windows, root / "open.json")
    facts, windows = synthetic.audit()
    facts["identity"]["identical_checkpoints"] = True
    write_receipt(facts, windows, root / "same.json")
    write_receipt(*synthetic.baseline(), root / "baseline.json")
    audit = ["audit", root / "base", root / "hard", "--probe", root / "probe/probes.yaml", "--quiet"]
    assert run([str(argument) for argument in [*audit, "--receipt", root / "real.json"]]) == 1
    whole = (root / "fail.json").read_bytes()
    evidence = (root / "fail.windows.safetensors").read_bytes()

    def forged(name: str, raw: bytes, windows: bytes | None = evidence) -> None:
        (root / f"{name}.json").write_bytes(raw)
        if windows is not None:
            (root / "fail.windows.safetensors").write_bytes(evidence)

    forged("edited", whole.replace(b'"verdict": "fail"', b'"verdict": "pass"'))
    rules = json.loads((root / "pass.json").read_bytes()) | {"derivation": 0}
    rules["evidence"]["receipt_sha256"] = receipt_digest(rules)
    forged("rules", encode_receipt(rules))
    forged("half", whole[: len(whole) // 2])
    forged("nothing", b"")
    forged("array", b"[]")
    forged("doubled", whole.replace(b'"kind"', b'"verdict": "pass", "kind"', 1))
    (root / "alone").mkdir()
    shutil.copy(root / "pass.json", root / "alone/pass.json")
    (root / "swapped").mkdir()
    shutil.copy(root / "pass.json", root / "swapped/pass.json")
    (root / "swapped/pass.windows.safetensors").write_bytes(evidence)
    (root / "receipt-folder").mkdir()
    os.mkfifo(root / "receipt-fifo")


def ledgers(root: Path) -> None:
    runs = root / "runs"
    Ledger("started", runs).append("registration", {"lock_sha256": "0" * 64})
    for name in ("torn", "edited", "shuffled", "foreign"):
        ledger = Ledger(name, runs)
        for number in range(3):
            ledger.append("registration", {"lock_sha256": str(number) * 64})
    path = {name: runs / name / "ledger.jsonl" for name in ("torn", "edited", "shuffled", "foreign")}
    path["torn"].write_bytes(path["torn"].read_bytes() + b'{"bo')
    path["edited"].write_bytes(path["edited"].read_bytes().replace(b"1111", b"1112", 1))
    lines = path["shuffled"].read_bytes().splitlines(keepends=True)
    path["shuffled"].write_bytes(lines[0] + lines[2] + lines[1])
    path["foreign"].write_bytes(path["torn"].read_bytes())
    (runs / "empty").mkdir()
    (runs / "empty/ledger.jsonl").write_bytes(b"")
    (runs / "fifo").mkdir()
    os.mkfifo(runs / "fifo/ledger.jsonl")


REFUSED_CHECKPOINTS = {
    "nowhere": 4, "empty-folder": 4, "cut": 4, "grown": 4, "empty-shard": 4, "garbage": 4, "huge-header": 4,
    "pickle": 4, "fifo": 4, "link": 4, "no-config": 4, "bad-config": 4, "unknown-family": 4,
}  # fmt: skip
REFUSED_PROBES = {
    "nowhere": 2, "unregistered": 2, "empty": 4, "no-domains": 4, "twice": 4, "alias": 4, "widened": 4,
    "no-source": 4, "no-windows": 4, "short-document": 4, "torn-lock": 4, "vocabulary": 4,
}  # fmt: skip


def measuring(w: Path) -> list[tuple[str, int, list]]:
    """Rows of audit and baseline."""

    def audit(base, tuned, *extra, probe="probe"):
        return ["audit", w / base, w / tuned, "--probe", w / probe / "probes.yaml", *extra]

    def baseline(checkpoint, *extra, probe="probe"):
        return ["baseline", w / checkpoint, "--probe", w / probe / "probes.yaml", *extra]

    rows = [
        ("audit: pass", 0, audit("base", "light")),
        ("audit: fail", 1, audit("base", "hard")),
        ("audit: fail, quietly", 1, audit("base", "hard", "--quiet")),
        ("audit: fail, as JSON", 1, audit("base", "hard", "--json")),
        ("audit: inconclusive", 3, audit("base", "light", probe="few")),
        ("audit: NaN in the tuned", 1, audit("base", "nan")),
        ("audit: NaN in the base", 4, audit("nan", "base")),
        ("audit: not a pair", 4, audit("base", "other")),
        ("audit: too little memory", 6, audit("base", "light", "--memory", "1MiB")),
        ("audit: central policy contradicted", 4, audit("base", "light", "--policy-from", w / "policy.yaml")),
        ("audit: central policy missing", 2, audit("base", "light", "--policy-from", w / "none.yaml")),
        ("audit: damaged ledger", 5, audit("base", "light", "--run", "edited", "--runs", w / "runs")),
        ("audit: no such device", 2, audit("base", "light", "--device", "nowhere")),
        ("audit: run name", 2, audit("base", "light", "--run", "../x")),
        ("audit: handoff reference edited", 5, audit("base", "light", "--baseline", w / "edited.json")),
        ("audit: handoff reference missing", 2, audit("base", "light", "--baseline", w / "none.json")),
        ("audit: attempt edited", 5, audit("base", "light", "--attempt", w / "edited.json")),
        ("audit: attempt at nothing", 2, audit("base", "light", "--attempt", w / "same.json")),
        (
            "audit: receipt into a checkpoint",
            2,
            audit("base", "light", "--receipt", w / "light/receipt.json"),
        ),
        ("audit: receipt of another name", 2, audit("base", "light", "--receipt", w / "receipt.txt")),
        ("audit: no arguments", 2, ["audit"]),
        ("audit: unknown option", 2, audit("base", "light", "--force-pass")),
        ("audit: no folder for the receipt", 2, audit("base", "light", "--receipt", w / "no/where.json")),
        ("baseline: recorded", 0, baseline("base")),
        ("baseline: NaN", 4, baseline("nan")),
        ("baseline: previous edited", 5, baseline("base", "--previous", w / "edited.json")),
        ("baseline: previous half", 5, baseline("base", "--previous", w / "half.json")),
        ("baseline: damaged ledger", 5, baseline("base", "--run", "shuffled", "--runs", w / "runs")),
        ("baseline: reason without a run", 2, baseline("base", "--reason", "x")),
    ]
    for name, code in REFUSED_CHECKPOINTS.items():
        rows += [
            (f"audit: base {name}", code, audit(name, "base")),
            (f"audit: tuned {name}", code, audit("base", name)),
            (f"baseline: {name}", code, baseline(name)),
        ]
    for name, code in REFUSED_PROBES.items():
        rows.append((f"audit: probe {name}", code, audit("base", "light", probe=name)))
        rows.append((f"baseline: probe {name}", code, baseline("base", probe=name)))
    return rows


BROKEN_RECEIPTS = {
    "none.json": 2, "receipt-folder": 4, "receipt-fifo": 4, "edited.json": 5, "half.json": 5, "nothing.json": 5,
    "array.json": 5, "doubled.json": 5, "alone/pass.json": 5, "swapped/pass.json": 5,
}  # fmt: skip


def reading(w: Path) -> list[tuple[str, int, list]]:
    """Rows of the commands that read receipts."""

    def calibrate(*extra):
        return ["calibrate", "--out", w / "budgets.yaml", *extra]

    rows = [
        ("diff: a pair", 0, ["diff", w / "pass.json", w / "fail.json"]),
        ("diff: one receipt", 2, ["diff", w / "pass.json"]),
        ("falsify: a baseline", 2, ["falsify", w / "pass.json", w / "baseline.json"]),
        ("falsify: no receipt", 2, ["falsify"]),
        ("calibrate: too few", 2, calibrate("--healthy", w / "pass.json")),
        ("calibrate: a baseline", 2, calibrate("--healthy", w / "baseline.json")),
        ("calibrate: no receipt", 2, calibrate()),
        ("verify: other rules", 4, ["verify", w / "rules.json"]),
        ("report: other rules", 4, ["report", w / "rules.json"]),
        ("attest: other rules", 4, ["attest", w / "rules.json", "--checkpoint", w / "base"]),
        ("attest: other configuration", 5, ["attest", w / "real.json", "--checkpoint", w / "other-config"]),
        ("verify: other configuration", 5, ["verify", w / "real.json", "--checkpoint", w / "other-config"]),
        ("verify: pass", 0, ["verify", w / "pass.json"]),
        ("verify: fail", 1, ["verify", w / "fail.json"]),
        ("verify: fail, as JSON", 1, ["verify", w / "fail.json", "--json"]),
        ("verify: inconclusive", 3, ["verify", w / "open.json"]),
        ("verify: baseline", 3, ["verify", w / "baseline.json"]),
        ("verify: baseline, integrity only", 0, ["verify", w / "baseline.json", "--integrity-only"]),
        ("verify: fail, integrity only", 0, ["verify", w / "fail.json", "--integrity-only"]),
        ("verify: other probe", 5, ["verify", w / "pass.json", "--probe", w / "probe/probes.yaml"]),
        ("verify: no probe", 2, ["verify", w / "pass.json", "--probe", w / "none.yaml"]),
        ("verify: other weights", 5, ["verify", w / "pass.json", "--checkpoint", w / "base"]),
        ("verify: no weights", 5, ["verify", w / "pass.json", "--checkpoint", w / "nowhere"]),
        ("report: explained", 0, ["report", w / "real.json"]),
        ("attest: other weights", 5, ["attest", w / "pass.json", "--checkpoint", w / "base"]),
        ("attest: no weights", 4, ["attest", w / "pass.json", "--checkpoint", w / "nowhere"]),
        ("attest: cut weights", 4, ["attest", w / "pass.json", "--checkpoint", w / "cut"]),
        ("attest: baseline", 2, ["attest", w / "baseline.json", "--checkpoint", w / "base"]),
        ("attest: no checkpoint", 2, ["attest", w / "pass.json"]),
    ]
    for name, code in BROKEN_RECEIPTS.items():
        many = 2 if name == "receipt-folder" else code  # a folder stands for the receipts in it: here none
        rows += [
            (f"diff: {name}", code, ["diff", w / "pass.json", w / name]),
            (f"falsify: {name}", many, ["falsify", w / "pass.json", w / name]),
            (f"calibrate: {name}", many, calibrate("--healthy", w / "pass.json", "--damaged", w / name)),
            (f"verify: {name}", code, ["verify", w / name]),
            (f"verify: {name}, integrity only", code, ["verify", w / name, "--integrity-only"]),
            (f"report: {name}", code, ["report", w / name]),
            (f"attest: {name}", code, ["attest", w / name, "--checkpoint", w / "base"]),
        ]
    return rows


def standing(w: Path) -> list[tuple[str, int, list]]:
    """Rows of register, init, inspect, plan, history, gate and of atlas itself."""

    def of_run(command, name):
        return [command, name, "--runs", w / "runs"]

    def plan(tuned, probe):
        return ["plan", w / "base", w / tuned, "--probe", w / probe / "probes.yaml"]

    rows = [
        ("atlas: no command", 2, []),
        ("atlas: unknown command", 2, ["promote"]),
        ("register: again", 0, ["register", w / "probe/probes.yaml"]),
        ("register: differs", 2, ["register", w / "widened/probes.yaml"]),
        ("init: taken", 2, ["init", w / "probe/probes.yaml"]),
        ("inspect: base", 0, ["inspect", w / "base"]),
        ("families: all", 0, ["families"]),
        ("families: an argument", 2, ["families", "x"]),
        ("plan: a pair", 0, plan("light", "probe")),
        ("plan: not a pair", 4, plan("other", "probe")),
        ("plan: unregistered", 2, plan("light", "unregistered")),
    ]
    for name, code in {
        "started": 3,
        "empty": 3,
        "torn": 5,
        "edited": 5,
        "shuffled": 5,
        "foreign": 5,
        "none": 2,
    }.items():
        rows.append((f"gate: {name}", code, of_run("gate", name)))
        witness = [*of_run("gate", name), "--receipts", w / "no-receipts"]
        rows.append((f"gate: {name}, no such receipts", 2 if code == 3 or name == "torn" else code, witness))
        rows.append(
            (f"history: {name}", {3: 0}.get(code, 0 if name == "torn" else code), of_run("history", name))
        )
    for command in ("gate", "history"):
        rows += [
            (f"{command}: FIFO", 4, of_run(command, "fifo")),
            (f"{command}: path", 2, of_run(command, "../runs")),
        ]
    for name, code in REFUSED_CHECKPOINTS.items():
        rows.append((f"inspect: {name}", code, ["inspect", w / name]))
    for name, code in REFUSED_PROBES.items():
        if name not in ("unregistered", "vocabulary", "widened"):
            rows.append((f"register: {name}", code, ["register", w / name / "probes.yaml"]))
    return rows


def placed(row: tuple[str, int, list], folder: Path) -> list[str]:
    """The row's command line, with a place of its own for what it writes, be it in several cells in turn."""
    arguments = row[2]
    extra: list = []
    if arguments and arguments[0] in RECORDING and "--receipt" not in arguments and len(arguments) > 1:
        extra = ["--receipt", folder / "receipt.json", "--force"]
    if arguments and arguments[0] == "attest":
        extra = ["-o", folder / "statement.json", "--force"]
    return [str(argument) for argument in [*arguments, *extra]]


def allowed(label: str, expected: int, output: str) -> set[int]:
    """The exit codes a cell may end in; a failed output may turn a read-only command's code into 6, never into 0."""
    if output in ("file", "closed") or label.split(":")[0] in RECORDING:
        return {expected}
    return {expected, 6}


def one_line(label: str, err: str) -> bool:
    """One line of refusal; without a command there is nothing to refuse, and the help says what there is."""
    if label == "atlas: no command":
        return err.startswith("Usage: atlas") and "atlas: E_" not in err
    lines = [line for line in err.splitlines() if line.startswith("atlas: E_")]
    return len(lines) == 1 and lines[0].isprintable() and len(lines[0]) < 2500


GROUPS = pytest.mark.parametrize("group", [measuring, reading, standing], ids=lambda group: group.__name__)


@GROUPS
def test_one_cell_of_every_row(world, tmp_path, group):
    rows = group(world)
    for start, flags in enumerate(INTERPRETERS.values()):
        chosen = [(row, OUTPUTS[n // 2 % 4]) for n, row in enumerate(rows) if n % 2 == start]
        judge(cells(chosen, flags, tmp_path), rows)


@pytest.mark.slow
@GROUPS
@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_every_cell(world, tmp_path, interpreter, group):
    rows = group(world)
    found = cells([(row, output) for row in rows for output in OUTPUTS], INTERPRETERS[interpreter], tmp_path)
    judge(found, rows)
    codes = dict(sorted(Counter(cell[2] for cell in found).items()))
    print(
        f"{group.__name__}, {interpreter}: {len(rows)} rows, {len(found)} cells, 0 fail-open, by exit code {codes}"
    )


def cells(chosen: list, flags: list[str], folder: Path) -> list[list]:
    """Run the cells in one interpreter: [label, output, exit code, standard error]."""
    asked = []
    for number, (row, output) in enumerate(chosen):
        (folder / f"{flags}{number}").mkdir()
        asked.append([row[0], output, placed(row, folder / f"{flags}{number}")])
    (folder / "rows.json").write_text(json.dumps(asked))
    command = [sys.executable, *flags, str(WORKER), str(folder / "rows.json"), str(folder / "cells.json")]
    subprocess.run(command, check=True, cwd=folder, timeout=7200)
    found = json.loads((folder / "cells.json").read_text())
    assert len(found) == len(chosen)
    return found


def judge(found: list[list], rows: list[tuple[str, int, list]]) -> None:
    """Every cell ends in its row's code, with one line and no traceback; none is fail-open."""
    expected = {label: code for label, code, _ in rows}
    assert len(expected) == len(rows)
    wrong = [cell for cell in found if cell[2] not in allowed(cell[0], expected[cell[0]], cell[1])]
    assert not wrong, "\n".join(map(str, wrong))
    assert [cell for cell in found if cell[2] == 0 and expected[cell[0]] != 0] == []
    assert [cell for cell in found if "Traceback" in cell[3]] == []
    refused = [cell for cell in found if cell[1] == "file" and cell[2] in (2, 4, 6)]
    assert [cell for cell in refused if not one_line(cell[0], cell[3])] == []


def test_a_bug_is_no_verdict():
    program = (
        "from moe_atlas import cli\n"
        "from moe_atlas.ledger import history\n"
        "def broken(*_): raise ZeroDivisionError\n"
        "history.read_history = broken\n"
        "import sys; sys.argv = ['atlas', 'gate', 'sft']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr


def test_run_itself_answers_as_the_process_does(capsys):
    assert run(["gate", "none"]) == 2
    assert capsys.readouterr().err.startswith("atlas: E_RUN .atlas/runs/none/ledger.jsonl: ")
