"""Stage damage-only: its PASS says everywhere that the atlas was measured, not judged, and licenses no preservation."""

from __future__ import annotations

import json
import logging
import xml.etree.ElementTree as ET
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from moe_atlas.cli import run
from moe_atlas.derivation.derive import derive
from moe_atlas.integrations.checkpoint_gate import CheckpointGate, GateResult
from moe_atlas.ledger import Ledger
from moe_atlas.ledger.history import read_history
from moe_atlas.receipt.write import write_receipt
from moe_atlas.report import terminal
from moe_atlas.report.formats import github, junit, markdown
from moe_atlas.report.html import history_page, page
from moe_atlas.report.summary import error_summary, summary
from moe_atlas.results import Receipt
from moe_atlas.verdict.qualifications import in_words
from moe_atlas.views.receipt import ReceiptView
from tests.ledger import runs
from tests.receipt import synthetic
from tests.report import receipts

CODE = "damage-only"
WORDS = "(the atlas was measured, not judged)"
PATH = Path("receipt.json")


def unjudged(made):
    """The facts of an audit under stage damage-only, whose policy has no budget of the atlas."""
    made["probe"]["policy"] |= {"stage": CODE, "resamples": 120}
    made["probe"]["policy"]["rewrite"] = dict.fromkeys(made["probe"]["policy"]["rewrite"])
    return made


def receipt(scale=1.0, kind="audit"):
    made = unjudged(receipts.facts(kind))
    body = derive(made, synthetic.windows(made, seed=3, scale=scale))
    return body | {"evidence": receipts.receipt()["evidence"]}


@pytest.fixture
def written(tmp_path):
    made = unjudged(receipts.facts())
    write_receipt(made, synthetic.windows(made, seed=3), tmp_path / "receipt.json")
    return tmp_path / "receipt.json"


def drawn(made):
    stream = StringIO()
    terminal.render(ReceiptView(made), Console(file=stream, width=160, highlight=False, markup=False))
    return stream.getvalue()


def test_a_pass_is_qualified_and_preserves_nothing():
    made = receipt()
    assert (made["verdict"], made["qualified"]) == ("pass", [CODE])
    outcomes = {name: (found["outcome"], found["passed"]) for name, found in made["predicates"].items()}
    assert outcomes == {
        "protected_atlas_rewrite": ("not-judged", True),
        "base_domain_damage": ("undamaged", True),
        "knowledge_expansive": ("task-reached", True),
    }
    status = {claim["claim"]: claim["status"] for claim in made["claims"]}
    assert (status["preserved"], status["preserved_at_matched_task_success"]) == ("unlicensed", "unlicensed")


def test_what_nothing_qualifies_says_nothing():
    for made in (receipts.receipt(), receipts.receipt("baseline"), receipt(kind="baseline")):
        assert made["qualified"] == []
        assert WORDS not in drawn(made)
        assert summary(ReceiptView(made), PATH)["qualified"] == {}


def test_every_report_says_it():
    made = receipt()
    assert f"PASS {WORDS}" in drawn(made).splitlines()[0]
    assert markdown.render(ReceiptView(made), PATH).splitlines()[0] == f"## ✅ atlas: PASS {WORDS}"
    assert f"PASS {WORDS}" in page.audit_page(ReceiptView(made), PATH)
    assert f"PASS {WORDS}" in page.notebook(ReceiptView(made), PATH)
    assert summary(ReceiptView(made), PATH)["qualified"] == {CODE: WORDS}
    cases = ET.fromstring(junit.render(ReceiptView(made), PATH).split("?>", 1)[1])
    said = [
        case.find("skipped").get("message")
        for case in cases.iter("testcase")
        if case.get("name") == "verdict"
    ]
    assert said == [f"PASS {WORDS}"]
    assert f"qualified={CODE}" in github.StepOutputs().render(ReceiptView(made), PATH).splitlines()
    assert (
        github.Annotation().render(ReceiptView(made), PATH).startswith(f"::notice title=atlas PASS {WORDS}::")
    )


def test_a_plain_pass_annotates_nothing_on_github():
    assert github.Annotation().render(ReceiptView(receipts.receipt()), PATH) == ""


def test_every_verdict_says_it():
    made = receipt()
    for verdict, word in (("fail", "FAIL"), ("inconclusive", "INCONCLUSIVE")):
        assert f"{word} {WORDS}" in drawn(made | {"verdict": verdict}).splitlines()[0]


def test_the_commands_that_answer_for_a_receipt_say_it(written, capsys):
    assert run(["verify", str(written)]) == 0
    assert f"verdict pass {WORDS}" in capsys.readouterr().out
    assert run(["verify", str(written), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["qualified"] == [CODE]
    assert run(["diff", str(written), str(written)]) == 0
    assert capsys.readouterr().out.count(f"PASS {WORDS}") == 2
    loaded = Receipt.load(written)
    assert loaded.qualified == [CODE]
    assert CODE in repr(loaded)


def test_a_receipt_that_hides_it_does_not_verify(written, capsys):
    body = json.loads(written.read_text())
    written.write_text(json.dumps(body | {"qualified": []}))
    assert run(["verify", str(written)]) == 5
    assert "qualified" in capsys.readouterr().out


def test_a_run_says_it_of_its_last_gate(tmp_path, capsys):
    ledger = Ledger("sft", tmp_path / "runs")
    runs.gate(ledger, tmp_path / "0.json", step=0)
    runs.gate(ledger, tmp_path / "1.json", step=100, seed=1, change=unjudged)
    where = ["sft", "--runs", str(tmp_path / "runs")]
    history = read_history(ledger)
    assert history.qualified == [CODE]
    table = history_page(history)
    assert f"clear {WORDS}" in table
    assert table.count(f"pass ({CODE})") == 1
    assert run(["history", *where]) == 0
    told = capsys.readouterr().out
    assert f"GREEN: clear {WORDS}" in told
    assert run(["gate", *where]) == 0
    assert f"GREEN clear {WORDS}" in capsys.readouterr().out
    assert run(["gate", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["qualified"] == [CODE]
    runs.gate(ledger, tmp_path / "2.json", step=200, seed=2)
    assert read_history(ledger).qualified == []


def test_a_gate_in_a_training_logs_it(tmp_path, caplog):
    gate = CheckpointGate("base", "probes.yaml", tmp_path)
    with caplog.at_level(logging.INFO, "moe_atlas.gate"):
        gate._judge(GateResult(10, PATH, PATH, 0, "pass", "", 1.0, "pass", (CODE,)))
    assert f"gate at step 10: pass {WORDS}" in caplog.text


def test_a_code_of_a_later_version_stands_for_itself():
    assert in_words("PASS", ["later\x1b[31m"]).startswith("PASS (")
    assert "\x1b" not in in_words("PASS", ["later\x1b[31m"])


def test_the_error_summary_has_the_same_key():
    from moe_atlas.errors import UsageError

    assert error_summary(UsageError("E_X", "x", "y", "z"))["qualified"] == {}
