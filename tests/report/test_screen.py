"""What a terminal of 80 columns shows: whole figures in fewer columns, never half a figure in all of them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from moe_atlas.receipt.compare import compare
from moe_atlas.report import diff, terminal
from moe_atlas.views.receipt import ReceiptView
from tests.receipt.test_compare import side
from tests.report import receipts


def at(width: int, *parts) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    console.print(*parts, sep="\n")
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("scale", [0.2, 40.0])
def test_no_figure_of_a_receipt_is_cut(width, scale):
    said = at(width, *terminal.sections(ReceiptView(receipts.receipt(scale=scale))))
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= width
    assert ("left out, for want of room: margin, dead" in said) is (width == 80)


def test_what_goes_first_is_what_decides_least():
    table = terminal.domain_table(ReceiptView(receipts.receipt()))
    assert "increase" in at(80, table)
    assert "top-1 agreement" not in at(80, table).splitlines()[2]


@pytest.mark.parametrize("width", [80, 140])
def test_a_difference_is_shown_whole(width):
    found = compare(side(), side(scale=3.0))
    said = at(width, *diff.sections(found, Path("a.json"), Path("b.json")))
    assert "…" not in said
    assert "B - A" in said
