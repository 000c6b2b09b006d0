"""Markdown, JUnit, JSON, GitHub Actions: what a pipeline reads agrees with the verdict, and nothing in it is live."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from moe_atlas.cli import run
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.receipt.compare import VerifiedReceipt
from moe_atlas.receipt.write import write_receipt
from moe_atlas.report import terminal, words
from moe_atlas.report.formats import github, junit, markdown
from moe_atlas.report.formats.interface import FormatName
from moe_atlas.report.formats.outputs import outputs
from moe_atlas.report.html import page
from moe_atlas.report.summary import summary
from moe_atlas.results import Receipt
from moe_atlas.text import markdown as escaped
from moe_atlas.text import workflow
from moe_atlas.views.judged import EvidenceLine
from moe_atlas.views.receipt import ReceiptView
from tests.receipt import synthetic
from tests.report import receipts

PATH = Path("receipt.json")
CASES = [
    (0.2, "chart-preserving"),
    (4.8, "chart-preserving"),
    (40.0, "chart-preserving"),
    (40.0, "knowledge-expansive"),
]


def counts(text: str) -> tuple[int, int]:
    root = ET.fromstring(text.split("?>", 1)[1])
    failures, errors = len(list(root.iter("failure"))), len(list(root.iter("error")))
    assert (root.get("failures"), root.get("errors")) == (str(failures), str(errors))
    assert root.get("tests") == str(len(list(root.iter("testcase"))))
    return failures, errors


@pytest.mark.parametrize(("scale", "stage"), CASES)
def test_junit_agrees_with_the_verdict(scale, stage):
    receipt = receipts.receipt(scale=scale, stage=stage)
    failures, errors = counts(junit.render(ReceiptView(receipt), PATH))
    verdict = "fail" if failures else ("inconclusive" if errors else "pass")
    assert verdict == receipt["verdict"]


def test_the_cases_reach_every_verdict():
    assert {receipts.receipt(scale=s, stage=g)["verdict"] for s, g in CASES} == {
        "pass",
        "fail",
        "inconclusive",
    }


def test_every_form_of_a_report_shows_a_warning():
    """Whoever reads only one form of a receipt must meet what the tool knows."""
    receipt = receipts.receipt(scale=0.2) | {"warnings": [{"code": "odd", "message": "an odd thing"}]}
    console = Console(width=200, record=True, file=StringIO())
    terminal.render(ReceiptView(receipt), console)
    forms = {
        "terminal": console.export_text(),
        "markdown": markdown.render(ReceiptView(receipt), PATH),
        "html": page.audit_page(ReceiptView(receipt), PATH),
        "junit": junit.render(ReceiptView(receipt), PATH),
        "json": json.dumps(summary(ReceiptView(receipt), PATH)),
    }
    assert [name for name, text in forms.items() if "an odd thing" not in text] == []
    assert counts(forms["junit"]) == (0, 0)


def test_a_failed_gate_that_the_stage_allows_is_skipped_not_failed():
    receipt = receipts.receipt(scale=40.0)
    for predicate in receipt["predicates"].values():
        predicate["passed"] = True
    text = junit.render(ReceiptView(receipt), PATH)
    assert counts(text) == (0, 0)
    assert junit.ALLOWED in text


def test_a_baseline_is_one_case_that_passes():
    text = junit.render(ReceiptView(receipts.receipt("baseline")), PATH)
    assert counts(text) == (0, 0)
    assert 'tests="1"' in text


def test_what_could_not_be_evaluated_is_an_error():
    error = InputRefused("E_COVER", "model.safetensors", "a tensor is missing", "save it again")
    assert counts(junit.render_error(error)) == (0, 1)
    assert "could not evaluate" in markdown.render_error(error)


@pytest.mark.parametrize("scale", [0.2, 1.0, 40.0])
def test_markdown_stays_under_fifty_lines(scale):
    receipt = receipts.receipt(scale=scale)
    receipt["domains"] = receipt["domains"] * 30
    receipt["warnings"] = [{"code": "x", "message": "m"}] * 30
    receipt["next_steps"] = [{"pattern": "p", "object": "o", "first": "f"}] * 30
    receipt["predicates"]["protected_atlas_rewrite"]["evidence"] += [
        receipt["predicates"]["base_domain_damage"]["evidence"][0] | {"gate": f"g{n}", "result": result}
        for n in range(60) for result in ("fail", "undetermined")
    ]  # fmt: skip
    text = markdown.render(ReceiptView(receipt), PATH)
    assert text.count("\n") < 50
    assert "\n\n\n" not in text


def test_the_verdict_comes_first_and_the_reasons_before_the_tables():
    text = markdown.render(ReceiptView(receipts.receipt(scale=40.0)), PATH)
    assert text.startswith("## ❌ atlas: FAIL\n")
    assert text.index("coordinate drift") < text.index("| predicate |") < text.index("| domain |")


def test_names_from_files_are_inert_everywhere():
    receipt = receipts.hostile()
    text = markdown.render(ReceiptView(receipt), PATH)
    for live in ("<script", "](http", "`rm`", "@all", "\x1b", "\u202e", "\n::error"):
        assert live not in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "script" in line]
    assert rows
    assert all(row.count("|") == 6 for row in rows)
    root = ET.fromstring(junit.render(ReceiptView(receipt), PATH).split("?>", 1)[1])
    assert {element.tag for element in root.iter()} <= {
        "testsuites", "testsuite", "testcase", "failure", "error", "skipped",
    }  # fmt: skip


def test_escapes_leave_ordinary_text_readable():
    assert (
        escaped("layer 5 drift 0.279 [0.254, 0.306], budget 0.02: x")
        == "layer 5 drift 0.279 [0.254, 0.306], budget 0.02: x"
    )
    assert escaped("[a](b)") == "[a&#93;(b)"
    assert workflow("a:b,c%\nd") == "a%3Ab%2Cc%25\\nd"


@pytest.fixture
def actions(tmp_path, monkeypatch):
    for name in (github.SUMMARY, github.OUTPUT):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def test_github_actions_gets_summary_outputs_and_annotation(actions, capsys):
    receipt = receipts.receipt(scale=40.0)
    outputs(github_actions=True).write(receipt, PATH)
    values = dict(line.split("=", 1) for line in (actions / github.OUTPUT).read_text().splitlines())
    assert values["verdict"] == "fail"
    assert values["exit-code"] == "1"
    assert values["receipt"] == "receipt.json"
    assert (actions / github.SUMMARY).read_text() == markdown.render(ReceiptView(receipt), PATH)
    assert capsys.readouterr().out.startswith("::error title=atlas FAIL::Code got 0.347 nats a byte worse")


def test_a_hostile_receipt_adds_no_output_and_no_command(actions, capsys):
    outputs(github_actions=True).write(receipts.hostile(), Path(receipts.HOSTILE))
    assert len((actions / github.OUTPUT).read_text().splitlines()) == 5
    assert capsys.readouterr().out.count("\n") <= 1


def test_github_outside_of_actions_is_refused_before_the_work(monkeypatch):
    monkeypatch.delenv(github.SUMMARY, raising=False)
    with pytest.raises(UsageError, match="E_GITHUB GITHUB_STEP_SUMMARY"):
        outputs(github_actions=True)


@pytest.mark.parametrize(
    ("formats", "paths", "message"),
    [
        (["pdf"], [], "E_FORMAT pdf: is not a report format"),
        ([], ["x.pdf"], "does not tell a report format"),
        (["json", "markdown"], [], "more than one report would go to standard output"),
        (["json=a", "junit=a"], [], "names the file of another"),
        (["json=receipt.json"], [], "names the file of another, or of the receipt"),
        (["json=no/such/a.json"], [], "E_NO_FOLDER"),
        (["junit=taken.xml"], [], "E_EXISTS taken.xml"),
    ],
)
def test_what_could_not_be_written_is_refused_before_the_work(formats, paths, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("taken.xml").touch()
    with pytest.raises(UsageError, match=message):
        outputs(formats, [Path(path) for path in paths], reserved=(PATH,))


@pytest.mark.parametrize("name", FormatName)
def test_every_format_of_the_table_is_written_and_says_the_verdict(name, tmp_path):
    path = tmp_path / "report"
    assert outputs([f"{name}={path}"]).write(receipts.receipt(scale=40.0), PATH) == [path]
    assert "fail" in path.read_text().lower()


def test_every_format_but_the_page_reports_an_error(tmp_path):
    error = InputRefused("E_COVER", "model.safetensors", "a tensor is missing", "save it again")
    outputs([f"{name}={tmp_path / name}" for name in FormatName]).write_error(error)
    assert {path.name for path in tmp_path.iterdir()} == {"json", "markdown", "junit"}
    assert all("E_COVER" in path.read_text() for path in tmp_path.iterdir())


def test_report_writes_what_was_asked_and_says_where(tmp_path, capsys, monkeypatch):
    receipts.on_disk(tmp_path, scale=40.0)
    monkeypatch.chdir(tmp_path)
    assert run(["report", "receipt.json", "-o", "r.html", "-o", "r.xml", "--format", "markdown=s.txt"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {name} from receipt.json" for name in ("s.txt", "r.html", "r.xml")
    ]
    assert counts(Path("r.xml").read_text())[0] > 0
    assert run(["report", "receipt.json", "-o", "r.html"]) == 2
    assert run(["report", "receipt.json", "-o", "r.html", "--force", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "fail"
    assert run(["report", "receipt.json"]) == 0
    assert "Predicates" in capsys.readouterr().out


def test_a_receipt_that_does_not_verify_is_not_reported(tmp_path, capsys):
    path = receipts.on_disk(tmp_path)
    path.write_text(path.read_text().replace('"verdict": "', '"verdict":  "'))
    assert (
        run(["report", str(path), "--format", f"junit={tmp_path / 'e.xml'}", "-o", str(tmp_path / "r.html")])
        == 5
    )
    assert counts((tmp_path / "e.xml").read_text()) == (0, 1)
    assert not (tmp_path / "r.html").exists()


def test_facts_that_cannot_be_shown_are_refused_without_a_traceback():
    receipt = receipts.receipt()
    receipt["noise_floor"] = {"layers": [7]}
    with pytest.raises(
        InputRefused, match=r"E_REPORT receipt.json: .* noise_floor.execution: missing; and 2 more"
    ):
        outputs(["html=x.html"]).write(receipt, PATH)


def test_a_fact_that_was_not_recorded_is_said_to_be_so(tmp_path, capsys):
    facts = receipts.facts()
    del facts["timing"]["started"]
    for found in facts["checkpoints"].values():
        for key in ("path", "tensors", "bytes_read", "dtype"):
            del found[key]
    path = tmp_path / "receipt.json"
    write_receipt(facts, synthetic.windows(facts, seed=3), path)
    assert run(["report", str(path), "-o", str(tmp_path / "r.html")]) == 0
    assert run(["report", str(path)]) == 0
    assert "not recorded → not recorded" in capsys.readouterr().out
    assert (tmp_path / "r.html").read_text().count("not recorded") >= 9


def strange() -> dict:
    """A receipt whose checkpoints are of another form than any that was written."""
    return receipts.receipt(scale=40.0) | {"checkpoints": {"base": {"family": "x"}}, "next_steps": [{}]}


def test_a_notebook_refuses_facts_that_cannot_be_shown():
    with pytest.raises(InputRefused, match="E_REPORT"):
        Receipt(PATH, strange())._repr_html_()


def test_github_refuses_facts_that_cannot_be_shown_before_it_writes(actions):
    with pytest.raises(InputRefused, match="E_REPORT"):
        outputs(github_actions=True).write(strange(), PATH)
    assert not list(actions.iterdir())


def test_diff_refuses_facts_that_cannot_be_compared(monkeypatch, capsys):
    side = VerifiedReceipt(receipts.receipt() | {"method": ["strange"]}, {})
    monkeypatch.setattr("moe_atlas.cli.receipts.diff._side", lambda path: side)
    assert run(["diff", "a.json", "b.json"]) == 4
    assert (
        "E_REPORT a.json: holds facts that cannot be shown: method: expected object"
        in capsys.readouterr().err
    )


def test_a_canary_domain_named_after_its_role_is_not_said_twice():
    line = {"domain": "canary", "gate": "canary", "estimate": 1.49, "budget": 0.5}
    assert words.gate_sentence(EvidenceLine(line)) == "domain canary worst window 1.49, 3 × limit 0.5"
