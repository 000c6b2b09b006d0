"""Snapshots of the three reports that pipelines parse and people read in a log."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from moe_atlas.report.formats import junit, markdown
from moe_atlas.report.terminal import render
from moe_atlas.views.receipt import ReceiptView
from tests.report import receipts
from tests.support import golden

PATH = Path("receipt.json")
CASES = {
    "pass": lambda: receipts.receipt(),
    "fail": lambda: receipts.receipt(scale=40.0),
    "inconclusive": lambda: receipts.receipt(scale=4.8),
    "baseline": lambda: receipts.receipt("baseline"),
}


def terminal(receipt):
    stream = io.StringIO()
    render(ReceiptView(receipt), Console(file=stream, width=120, highlight=False, markup=False))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_the_terminal_report(case):
    golden.check(f"terminal-{case}.txt", terminal(CASES[case]()))


@pytest.mark.parametrize("case", CASES)
def test_the_step_summary(case):
    golden.check(f"summary-{case}.md", markdown.render(ReceiptView(CASES[case]()), PATH))


@pytest.mark.parametrize("case", CASES)
def test_junit(case):
    golden.check(f"junit-{case}.xml", junit.render(ReceiptView(CASES[case]()), PATH))
