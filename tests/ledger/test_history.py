from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from moe_atlas.cli.probes.register import register as register_command
from moe_atlas.cli.runs.gate import gate as gate_command
from moe_atlas.cli.runs.history import history as history_command
from moe_atlas.errors import IntegrityError, UsageError
from moe_atlas.ledger import Ledger, recording
from moe_atlas.ledger.history import read_history
from moe_atlas.ledger.receipts import check_witnesses, find_witnesses
from moe_atlas.ledger.recording import record_receipt
from moe_atlas.ledger.records import gate_records, is_clean, receipt_body
from moe_atlas.receipt.write import write_receipt
from moe_atlas.report.html import history_page
from tests.ledger.runs import LOOSE, gate, made_facts, write
from tests.receipt import synthetic


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger("sft", tmp_path / "runs")


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command("gate")(gate_command)
    app.command("history")(history_command)
    app.command("register")(register_command)
    return app


def run(app: typer.Typer, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), standalone_mode=False, catch_exceptions=False)
    return result.return_value, result.output


def test_what_an_entry_keeps_of_an_audit(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    receipt = write(ledger, path)
    entry = record_receipt(ledger, path, step=500)
    body = entry.body
    assert entry.kind == "audit"
    assert body["receipt"] == str(path)
    assert body["receipt_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (body["step"], body["verdict"]) == (500, receipt["verdict"])
    assert body["checkpoint"] == receipt["checkpoints"]["tuned"]["digest"]
    assert body["lock_sha256"] == receipt["probe"]["lock"]["sha256"]
    assert body["budgets"] == {
        "overlap_drop": 0.05,
        "dead_share_rise": 0.1,
        "entropy_drop": 0.2,
        "load_cv_rise": 0.5,
    }
    protected = next(layer for layer in receipt["layers"] if layer["protected"])
    sides = {"health": "tuned", "reference": "base"}
    for key, side in sides.items():
        aggregate = receipt["aggregates"]["protected"][side]
        assert body[key] == {
            "overlap": protected[side]["overlap"]["estimate"],
            "set_margin": protected[side]["set_margin"]["estimate"],
            "dead_experts": aggregate["dead_experts"]["mean"]["estimate"],
            "load_cv": aggregate["mean_load_cv"]["estimate"],
            "min_entropy": aggregate["min_entropy"]["estimate"],
            "experts": 8,
        }
    task = next(row for row in receipt["domains"] if row["role"] == "task")
    assert body["nll"] == task["nll_tuned"]["estimate"]
    base = [row["nll_tuned"] for row in receipt["domains"] if row["role"] == "base"]
    means = {key: sum(found[key] for found in base) / len(base) for key in ("estimate", "low", "high")}
    assert body["base_nll"] == pytest.approx(means["estimate"])
    assert body["bounds"]["base_nll"] == pytest.approx([means["low"], means["high"]])
    assert body["bounds"]["overlap"] == [protected["tuned"]["overlap"][key] for key in ("low", "high")]
    assert body["bounds"]["nll"] == [task["nll_tuned"][key] for key in ("low", "high")]
    assert body["margin"] == receipt["probe"]["policy"]["damage"]["nll"]
    assert body["outcomes"] == {name: p["outcome"] for name, p in receipt["predicates"].items()}


def test_a_baseline_licenses_nothing_and_a_reason_makes_it_a_resume(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    write(ledger, path, "baseline")
    first = record_receipt(ledger, path, step=0)
    write(ledger, path, "baseline")
    second = record_receipt(ledger, path, step=100, reason="node failure")
    assert [first.kind, second.kind] == ["baseline", "resume"]
    assert second.body["reason"] == "node failure"
    assert "overlap_worse" not in first.body
    records = gate_records([first, second])
    assert [record.verdict for record in records] == [None, None]
    assert records[1].clean is True


def test_only_a_receipt_that_rederives_is_recorded(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    write(ledger, path, "baseline")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError):
        record_receipt(ledger, path)
    write(ledger, path, "baseline")
    path.with_name("b.windows.safetensors").unlink()
    with pytest.raises(IntegrityError):
        record_receipt(ledger, path)
    assert not ledger.exists


def test_a_receipt_of_no_run_or_another_run_is_not_recorded(ledger: Ledger, tmp_path: Path) -> None:
    facts = made_facts()
    path = tmp_path / "a.json"
    write_receipt(facts, synthetic.windows(facts), path)
    with pytest.raises(UsageError, match="was not written for run"):
        record_receipt(ledger, path)
    write(Ledger("other", tmp_path), path)
    with pytest.raises(UsageError, match="was not written for run"):
        record_receipt(ledger, path)


def test_pathology_and_failures_come_from_the_gated_bounds(ledger: Ledger, tmp_path: Path) -> None:
    calm = gate(ledger, tmp_path / "a.json", 1).body
    assert calm["pathology"] == []
    strict = gate(
        ledger,
        tmp_path / "b.json",
        2,
        scale=30.0,
        coordinate=1e-6,
        boundary=1e-6,
        transition=1e-6,
        content=1e-6,
    ).body
    assert strict["verdict"] == "fail"
    assert {"coordinate", "boundary", "transition", "content"} <= set(strict["failed"])
    facts = made_facts()
    receipt = {
        **facts,
        "verdict": "fail",
        "qualified": [],
        "claims": [{"claim": "usage_narrowing", "status": "licensed"}],
        "predicates": {},
        "aggregates": {"protected": {}},
        "domains": [],
        "layers": [
            {
                "layer": 2,
                "experts": 8,
                "pair": {
                    "dead_share_rise": {"simultaneous_low": 0.2},
                    "entropy_drop": {"simultaneous_low": 0.2},
                    "load_cv_rise": {"simultaneous_low": 0.51},
                },
            },
            {"layer": 1, "experts": 8, "pair": {"entropy_drop": {"simultaneous_low": 9.0}}},
        ],
    }
    body = receipt_body(receipt, tmp_path / "x", "0" * 64)
    assert body["pathology"] == [
        "dead_share",
        "load_cv",
    ]  # entropy: at the budget, and layer 1 is not protected
    assert body["occupancy_narrowing"] is True
    assert body["health"]["overlap"] is None


def test_the_policy_digest_follows_the_policy(ledger: Ledger, tmp_path: Path) -> None:
    first = gate(ledger, tmp_path / "a.json", 1).body["policy_sha256"]
    assert gate(ledger, tmp_path / "b.json", 2, seed=5).body["policy_sha256"] == first
    assert gate(ledger, tmp_path / "c.json", 3, boundary=0.3).body["policy_sha256"] != first


HEALTHY = {"overlap": 0.08, "dead_experts": 40.0, "load_cv": 1.4, "min_entropy": 3.0, "experts": 640.0}
BUDGETS = {"overlap_drop": 0.02, "dead_share_rise": 0.02, "entropy_drop": 0.1, "load_cv_rise": 0.25}


@pytest.mark.parametrize(
    ("change", "budgets", "clean"),
    [
        ({}, BUDGETS, True),
        ({"overlap": 0.07, "dead_experts": 50.0, "load_cv": 1.6, "min_entropy": 2.95}, BUDGETS, True),
        ({"overlap": 0.9, "dead_experts": 0.0, "load_cv": 0.1, "min_entropy": 6.0}, BUDGETS, True),
        ({"overlap": 0.05}, BUDGETS, False),
        ({"dead_experts": 60.0}, BUDGETS, False),
        ({"load_cv": 1.7}, BUDGETS, False),
        ({"min_entropy": 2.8}, BUDGETS, False),
        ({"overlap": None}, BUDGETS, None),
        ({"min_entropy": None}, BUDGETS, None),
        ({"experts": None}, BUDGETS, None),
        ({}, {}, None),
        ({}, {"overlap_drop": 0.02}, None),
        ({}, {"load_cv_rise": 0.02}, None),
        ({"min_entropy": None}, {"overlap_drop": 0.02, "load_cv_rise": 0.2}, True),
    ],
)
def test_a_clean_baseline(
    change: dict[str, float | None], budgets: dict[str, float], clean: bool | None
) -> None:
    assert is_clean({**HEALTHY, **change}, HEALTHY, budgets) is clean


def test_history_of_a_run(ledger: Ledger, tmp_path: Path, app: typer.Typer) -> None:
    write(ledger, tmp_path / "b.json", "baseline")
    record_receipt(ledger, tmp_path / "b.json", step=0)
    gate(ledger, tmp_path / "g1.json", 100, boundary=1e-6)
    found = read_history(ledger)
    assert found.witnesses == 2
    assert [(r.colour, r.state) for r in found.readings.values()] == [
        (None, "waiting"),
        ("YELLOW", "first-bad"),
    ]
    arguments = ("sft", "--runs", str(tmp_path / "runs"))
    code, output = run(app, "history", *arguments)
    assert code == 0
    assert "first-bad" in output
    assert "revoke every preservation claim" in output
    code, output = run(app, "history", *arguments, "--json")
    facts = json.loads(output)
    assert (facts["state"], facts["colour"], facts["exit_code"]) == ("first-bad", "YELLOW", 3)
    assert [entry["kind"] for entry in facts["entries"]] == ["baseline", "audit"]
    assert facts["head"] == ledger.head().describe()
    code, output = run(app, "gate", *arguments)
    assert (code, output.startswith("YELLOW first-bad: ")) == (3, True)
    code, output = run(app, "gate", *arguments, "--json")
    assert json.loads(output)["exit_code"] == code == 3
    assert run(app, "gate", *arguments, "--quiet") == (3, "")


def test_gate_codes(ledger: Ledger, tmp_path: Path, app: typer.Typer) -> None:
    arguments = ("sft", "--runs", str(tmp_path / "runs"))
    with pytest.raises(UsageError):
        run(app, "gate", *arguments)
    loose = {"coordinate": 2.0, "boundary": 1.0, "transition": 0.69, "content": 1.0, "overlap_drop": 2.0}
    loose |= {"dead_share_rise": 1.0, "entropy_drop": 9.0, "load_cv_rise": 9.0, "refinement": None}
    entry = gate(ledger, tmp_path / "g0.json", 0, **loose)
    assert entry.body["verdict"] == "pass"
    assert run(app, "gate", *arguments)[0] == 0
    for n in range(1, 5):
        assert gate(ledger, tmp_path / f"g{n}.json", n, boundary=1e-6).body["verdict"] == "fail"
        assert run(app, "gate", *arguments)[0] == (1 if n == 4 else 3)


def test_a_cut_tail_is_noticed_through_the_receipts(ledger: Ledger, tmp_path: Path, app: typer.Typer) -> None:
    receipts = tmp_path / "receipts"
    receipts.mkdir()
    for n in range(3):
        gate(ledger, receipts / f"g{n}.json", n)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    for kept in (1, 2):
        ledger.path.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(IntegrityError) as caught:
            read_history(ledger)
        assert caught.value.code == "E_LEDGER_CUT"
        assert f"g{kept}.json" in caught.value.problem
    ledger.path.write_bytes(b"")
    assert read_history(ledger).last is None  # nothing names the folder; it must be given
    with pytest.raises(IntegrityError):
        run(app, "gate", "sft", "--runs", str(tmp_path / "runs"), "--receipts", str(receipts))
    ledger.path.write_bytes(b"".join(lines))
    assert read_history(ledger, [receipts]).witnesses == 3


def test_a_rewritten_ledger_is_noticed_through_the_receipts(ledger: Ledger, tmp_path: Path) -> None:
    entries = [gate(ledger, tmp_path / f"g{n}.json", n) for n in range(3)]
    ledger.path.unlink()
    for entry in entries:
        ledger.append(entry.kind, {**entry.body, "verdict": "pass"})
    with pytest.raises(IntegrityError) as caught:
        read_history(ledger)
    assert caught.value.code == "E_LEDGER_CUT"


def test_a_receipt_changed_after_it_was_recorded(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    gate(ledger, path, 0)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"timing"', b'"timinh"', 1))
    with pytest.raises(IntegrityError, match="is not the receipt"):
        read_history(ledger)
    path.unlink()
    assert read_history(ledger).witnesses == 0  # archived: says nothing


def test_a_receipt_replaced_by_a_later_recorded_one_is_fine(ledger: Ledger, tmp_path: Path) -> None:
    gate(ledger, tmp_path / "g.json", 0)
    gate(ledger, tmp_path / "g.json", 1, seed=3)
    assert read_history(ledger).witnesses == 1


def test_a_receipt_written_but_never_recorded_blocks_the_gate(ledger: Ledger, tmp_path: Path) -> None:
    gate(ledger, tmp_path / "g0.json", 0)
    write(ledger, tmp_path / "g1.json", seed=2)
    with pytest.raises(IntegrityError, match="never recorded"):
        read_history(ledger)
    record_receipt(ledger, tmp_path / "g1.json", step=1)
    assert read_history(ledger).witnesses == 2


def test_a_receipt_recorded_no_later_than_what_it_follows(ledger: Ledger, tmp_path: Path) -> None:
    entries = [gate(ledger, tmp_path / f"g{n}.json", n) for n in range(3)]
    witness = find_witnesses(entries, ledger.run)[1]  # recorded as entry 1, written after entry 0
    assert check_witnesses(entries, [witness]) == []
    for entry in entries[1:]:
        early = replace(witness, head=entry.head.describe())
        assert "recorded before" in check_witnesses(entries, [early])[0]


@pytest.mark.parametrize("seq", [-2, 3, 10**30, None, "0", 0.0])
def test_a_head_that_no_ledger_has_is_unknown(ledger: Ledger, tmp_path: Path, seq: object) -> None:
    """Minus two would be the last entry, counted from the end."""
    entries = [gate(ledger, tmp_path / f"g{n}.json", n) for n in range(3)]
    witness = find_witnesses(entries, ledger.run)[0]
    forged = replace(witness, head={"run": ledger.run, "seq": seq, "hash": entries[-1].hash})
    assert "does not have" in check_witnesses(entries, [forged])[0]


def test_other_files_beside_the_receipts_are_passed_over(ledger: Ledger, tmp_path: Path) -> None:
    gate(ledger, tmp_path / "g0.json", 0)
    (tmp_path / "x.json").write_bytes(b"\xff")
    (tmp_path / "y.json").write_text('{"parent": {"ledger": {"run": "other", "seq": 99}}}')
    (tmp_path / "z.json").write_text("[1]")
    (tmp_path / "d.json").mkdir()
    assert read_history(ledger).witnesses == 1


def test_a_witness_that_is_named_must_be_one(ledger: Ledger, tmp_path: Path) -> None:
    """A mistyped folder would be a check that never fails."""
    gate(ledger, tmp_path / "g0.json", 0)
    write(Ledger("other", tmp_path / "runs"), tmp_path / "elsewhere.json")
    os.mkfifo(tmp_path / "pipe")
    for place, code in (("nowhere", "E_NO_FILE"), ("elsewhere.json", "E_RUN"), ("pipe", "E_RUN")):
        with pytest.raises(UsageError, match=code):
            read_history(ledger, [tmp_path, tmp_path / place])
    assert read_history(ledger, [tmp_path, tmp_path / "g0.json"]).witnesses == 1


def test_a_receipt_swapped_while_it_is_recorded_is_noticed(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry names the bytes that verified, whatever lies there a moment later."""
    path = tmp_path / "g.json"
    write(ledger, path)
    verified = hashlib.sha256(path.read_bytes()).hexdigest()
    real = recording.intact_receipt

    def swapped(where: Path) -> dict[str, Any]:
        receipt = real(where)
        where.write_bytes(b"{}")
        return receipt

    monkeypatch.setattr(recording, "intact_receipt", swapped)
    assert record_receipt(ledger, path).body["receipt_sha256"] == verified
    with pytest.raises(IntegrityError, match="is not the receipt"):
        read_history(ledger)


def test_a_torn_tail_is_shown_and_blocks_the_gate(ledger: Ledger, tmp_path: Path, app: typer.Typer) -> None:
    gate(ledger, tmp_path / "g.json", 0)
    with ledger.path.open("ab") as file:
        file.write(b'{"body"')
    arguments = ("sft", "--runs", str(tmp_path / "runs"))
    assert "cut short" in run(app, "history", *arguments)[1]
    with pytest.raises(IntegrityError) as caught:
        run(app, "gate", *arguments)
    assert caught.value.code == "E_LEDGER_TORN"
    gate(ledger, tmp_path / "g1.json", 1)
    assert run(app, "gate", *arguments)[0] in (0, 3)
    assert "7 torn bytes set aside" in run(app, "history", *arguments)[1]


def tuned(digest: str) -> Callable[[dict[str, Any]], Any]:
    """Facts of a pair whose tuned checkpoint has this digest."""

    def change(facts: dict[str, Any]) -> None:
        facts["checkpoints"]["tuned"]["digest"] = digest * 32

    return change


def base(digest: str, config: str) -> Callable[[dict[str, Any]], Any]:
    def change(facts: dict[str, Any]) -> None:
        tuned("99")(facts)
        facts["checkpoints"]["base"] |= {"digest": digest * 32, "config_sha256": config * 32}

    return change


def registered(content: str) -> Callable[[dict[str, Any]], Any]:
    def change(facts: dict[str, Any]) -> None:
        tuned("99")(facts)
        facts["probe"]["lock"]["content_sha256"] = content * 32

    return change


def both(*changes: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda facts: [change(facts) for change in changes]


REGISTERED = registered("1a")


@pytest.mark.parametrize(
    ("changes", "state", "why"),
    [
        ([tuned("11"), tuned("22")], "clear", None),
        ([tuned("11"), tuned("11")], "alert", "it counts once"),
        ([tuned("11"), tuned("ab")], "alert", "nothing was compared"),
        ([tuned("ab"), tuned("ab")], "alert", "nothing was compared"),
        ([tuned("11"), tuned("00")], "alert", "it counts once"),
        ([tuned("11"), base("ab", "00")], "alert", "another base"),
        ([tuned("11"), base("77", "ef")], "alert", "another base"),
        ([tuned("11"), registered("1b")], "alert", "other registered windows"),
    ],
)
def test_which_receipts_end_an_episode(
    ledger: Ledger, tmp_path: Path, app: typer.Typer, changes: list[Any], state: str, why: str | None
) -> None:
    """After a failure: new checkpoints against the same base under the same registration, nothing else."""
    failed = gate(
        ledger, tmp_path / "bad.json", 0, scale=300.0, change=both(REGISTERED, tuned("00")), **LOOSE
    )
    assert failed.body["verdict"] == "fail"
    for number, change in enumerate(changes, start=1):
        how = both(REGISTERED, change)
        passed = gate(ledger, tmp_path / f"{number}.json", number, change=how, **LOOSE)
        assert passed.body["structure"] == "pass"
    arguments = ("sft", "--runs", str(tmp_path / "runs"))
    last = read_history(ledger).last
    assert last is not None
    assert (last.state, run(app, "gate", *arguments)[0]) == (state, 0 if why is None else 3)
    if why is not None:
        assert why in run(app, "gate", *arguments)[1]
        assert why in json.loads(run(app, "gate", *arguments, "--json")[1])["not_counted"]
        assert why in json.loads(run(app, "history", *arguments, "--json")[1])["entries"][-1]["notes"][0]
        assert why in " ".join(run(app, "history", *arguments)[1].split())
        assert why in history_page(read_history(ledger))


def missed(facts: dict[str, Any]) -> None:
    """A target that the synthetic task is far from."""
    facts["probe"]["domains"][1]["success"]["at_most"] = 0.1


def test_a_healthy_run_that_has_not_reached_its_task_stays_green(
    ledger: Ledger, tmp_path: Path, app: typer.Typer
) -> None:
    arguments = ("sft", "--runs", str(tmp_path / "runs"))
    for number in range(1, 6):
        how = both(tuned(f"{number}{number}"), missed)
        entry = gate(ledger, tmp_path / f"{number}.json", number, change=how, **LOOSE)
        assert (entry.body["verdict"], entry.body["structure"]) == ("fail", "pass")
        assert entry.body["outcomes"]["knowledge_expansive"] == "task-not-reached"
        code, said = run(app, "gate", *arguments)
        assert (code, said.startswith("GREEN task-open: ")) == (3, True)
    entry = gate(ledger, tmp_path / "bad.json", 9, change=both(tuned("99"), missed), scale=300.0, **LOOSE)
    assert entry.body["structure"] == "fail"
    assert "first-bad" in run(app, "gate", *arguments)[1]


PROBES = """\
schema: atlas/probes/v1
name: gate
tokenizer: bytes
windows: {tokens: 4}
protected_layers: all
domains: [{name: prose, role: base, source: a.txt}]
policy:
  task: none
  rewrite: {coordinate: 0.1, boundary: null, transition: null, content: null}
  damage: {nll: 0.1, document_nll: 0.5, document_share: 0.05}
"""


def test_a_widened_threshold_is_visible_in_the_history(
    ledger: Ledger, tmp_path: Path, app: typer.Typer
) -> None:
    (tmp_path / "a.txt").write_text("some text")
    probes = tmp_path / "probes.yaml"
    probes.write_text(PROBES)
    arguments = ("--run", "sft", "--runs", str(tmp_path / "runs"))
    run(app, "register", str(probes), *arguments)
    first = ledger.read().entries[0].body
    probes.write_text(PROBES.replace("coordinate: 0.1", "coordinate: 0.9"))
    run(app, "register", str(probes), "--force", *arguments)
    entry = ledger.read().entries[1]
    assert entry.kind == "registration"
    assert entry.body["predecessor"]["sha256"] == first["lock_sha256"]
    output = run(app, "history", "sft", "--runs", str(tmp_path / "runs"))[1]
    assert output.count(first["lock_sha256"][:12]) == 2  # once as the lock, once as the one replaced
    assert entry.body["lock_sha256"][:12] in output
    assert run(app, "gate", "sft", "--runs", str(tmp_path / "runs"))[0] == 3


def test_a_probe_set_of_another_policy_is_visible_in_the_history(
    ledger: Ledger, tmp_path: Path, app: typer.Typer
) -> None:
    def under(policy: str) -> Callable[[dict[str, Any]], Any]:
        return lambda facts: facts["probe"]["lock"].update(policy_sha256=policy * 32)

    gate(ledger, tmp_path / "1.json", 1, change=under("aa"))
    gate(ledger, tmp_path / "2.json", 2, change=under("aa"))
    gate(ledger, tmp_path / "3.json", 3, change=under("bb"))
    notes = [
        [note for note in entry["notes"] if "policy" in note]
        for entry in read_history(ledger).describe()["entries"]
    ]
    assert notes == [[], [], ["policy changed: aaaaaaaaaaaa → bbbbbbbbbbbb"]]
    output = " ".join(run(app, "history", "sft", "--runs", str(tmp_path / "runs"))[1].split())
    assert "policy changed:" in output
    assert "policy changed: aaaaaaaaaaaa" in history_page(read_history(ledger))


def test_history_and_gate_never_import_torch() -> None:
    import subprocess
    import sys

    program = (
        "import sys, moe_atlas.ledger.history, moe_atlas.ledger.recording;"
        "import moe_atlas.cli.runs.gate, moe_atlas.cli.probes.register;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
