"""Beside every drift and change of loss stands the multiple of a 4-bit copy's, where the copy moved it for certain."""

from __future__ import annotations

import copy
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from moe_atlas.report import terminal
from moe_atlas.report.formats import junit, markdown
from moe_atlas.report.html import page
from moe_atlas.report.yardstick import with_multiples
from moe_atlas.views.receipt import ReceiptView
from tests.report import receipts

PATH = Path("receipt.json")
KEYS = ("coordinate_drift_z", "boundary_drift", "transition_drift", "content_drift", "expert_content",
        "overlap_drop", "dead_share_rise", "entropy_drop", "load_cv_rise")  # fmt: skip


def interval(value: float, low: float | None) -> dict[str, Any]:
    return {"estimate": value, "low": low, "high": 2 * value}


def with_copy(receipt: dict[str, Any], times: float, low: float | None = 1e-9) -> dict[str, Any]:
    """A receipt whose tune moved everything `times` as far as the copy did."""

    def shrunk(found: dict[str, Any] | None) -> dict[str, Any]:
        value = (found or {}).get("estimate")
        return interval(1.0 if value is None else value / times, low)

    layers = [
        {"layer": layer["layer"], **{key: shrunk(layer["pair"].get(key)) for key in KEYS}}
        for layer in receipt["layers"]
    ]
    domains = [
        {
            "name": row["name"],
            "role": row["role"],
            **{key: shrunk(row[key]) for key in ("nll_increase", "kl")},
        }
        for row in receipt["domains"]
    ]
    block = {"taken_from": "cache", "copy": {"bits": 4, "group": 32}, "key": "0" * 64}
    return receipt | {"yardstick": block | {"layers": layers, "domains": domains}}


def shown(receipt: dict[str, Any]) -> ReceiptView:
    return ReceiptView(with_multiples(receipt))


def printed(receipt: dict[str, Any]) -> str:
    out = io.StringIO()
    terminal.render(shown(receipt), Console(file=out, width=300))
    return out.getvalue()


def forms(receipt: dict[str, Any]) -> dict[str, str]:
    return {
        "terminal": printed(receipt),
        "markdown": markdown.render(shown(receipt), PATH),
        "junit": html.unescape(junit.render(shown(receipt), PATH)),
        "html": html.unescape(page.audit_page(shown(receipt), PATH)),
        "notebook": html.unescape(page.notebook(shown(receipt), PATH)),
    }


@pytest.mark.parametrize("form", ["terminal", "markdown", "junit", "html", "notebook"])
def test_the_reasons_of_a_fail_say_it(form):
    body = receipts.receipt(scale=40.0)
    before = copy.deepcopy(body)
    said = forms(with_copy(body, 1.3))[form]
    assert "1.3 × a 4-bit copy" in said
    assert body == before
    assert "4-bit" not in forms(body)[form]


def test_every_drift_of_the_tables_has_its_own():
    body = with_copy(receipts.receipt(), 0.25)
    layer = body["layers"][0]
    text, web = printed(body), html.unescape(page.audit_page(shown(body), PATH))
    for key in KEYS[:5]:
        if (value := (layer["pair"].get(key) or {}).get("estimate")) and key != "transition_drift":
            assert f"{value:.3g} 0.25×" in text, key
            assert f"{value:.3g} 0.25×" in web, key
    assert not re.search(r"0\.25×", "".join(line for line in text.splitlines() if "entropy" in line))
    domain = next(row for row in body["domains"] if row["role"] == "base")
    assert f"{domain['kl']['estimate']:.3g} 0.25×" in text


def test_a_copy_that_did_not_certainly_move_it_is_no_unit():
    for low in (0.0, -0.1, None):
        assert "× a 4-bit copy" not in printed(with_copy(receipts.receipt(scale=40.0), 1.3, low))


def test_a_tiny_multiple_is_not_spelled_out():
    said = printed(with_copy(receipts.receipt(scale=40.0), 1e-5))
    assert "<0.01 × a 4-bit copy" in said


def test_json_and_baselines_stay_as_they_are():
    body = with_copy(receipts.receipt(), 1.3)
    page.audit_page(shown(body), PATH)
    assert "times_copy" not in json.dumps(body)
    baseline = receipts.receipt("baseline") | {"yardstick": body["yardstick"]}
    assert "4-bit" not in printed(baseline)
