"""What a registration can decide: from changes alone, null with its reason where they are not known."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from moe_atlas.probes.lock import Lock
from moe_atlas.receipt.write import write_receipt
from moe_atlas.report.registration import forecast as module
from moe_atlas.report.registration.forecast import changes_of, forecast, forecast_lines
from moe_atlas.statistics.power import documents_to_pass, of_all, smallest_margin, spread
from tests.receipt import synthetic
from tests.report import receipts


def lock(documents: int = 100, names: tuple[str, ...] = ("prose", "code"), **damage: Any) -> Lock:
    """A lock with so many documents in each base domain."""
    windows = [{"document": str(n), "tokens": 32, "sha256": ""} for n in range(documents)]
    domains = [
        {"name": name, "role": "base", "windows": windows, "near_copies": [], "elsewhere": []}
        for name in names
    ]
    domains.append({"name": "sft", "role": "task", "windows": windows, "near_copies": [], "elsewhere": []})
    limits = {"nll": 0.02, "document_nll": 0.2, "document_share": 0.12} | damage
    return Lock(Path("probes.lock.json"), "", {"domains": domains, "probes": {"policy": {"damage": limits}}})


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    path: Path = receipts.on_disk(tmp_path_factory.mktemp("pair"))
    return path


def test_the_changes_of_a_pair_give_margin_and_documents(pair):
    row = next(row for row in json.loads(pair.read_text())["domains"] if row["name"] == "prose")
    shown = row["nll_increase"]
    bounds = {"pass_high": shown["pass_high"], "effective": shown["effective_documents"]}
    found = spread(shown["estimate"], shown["low"], shown["high"], row["documents"], 0.95, **bounds)
    made = forecast(lock(200), changes_of(pair))
    told = next(row for row in made["domains"] if row["name"] == "prose")
    assert told["smallest_margin"] == smallest_margin(found, 200, of_all(0.9, 2))
    assert told["documents_needed"] == documents_to_pass(found, 0.02, 36, of_all(0.9, 2))
    assert made["changes_from"]["changes_of"] == "the pair"
    lines = list(forecast_lines(made))
    assert "with 90% chance" in lines[0]
    assert "a margin of" in lines[1]
    assert "no document is damaged" in lines[-1]


def test_more_documents_pass_a_smaller_margin(pair):
    few, many = (forecast(lock(n), changes_of(pair))["domains"][0]["smallest_margin"] for n in (100, 400))
    assert few == pytest.approx(2 * many)


def test_without_changes_nothing_is_promised():
    made = forecast(lock(), None)
    assert made["changes_from"] is None
    for row in made["domains"]:
        assert (row["smallest_margin"], row["documents_needed"]) == (None, None)
        assert "a base alone gives the spread of losses" in row["reason"]
    (line,) = forecast_lines(made)
    assert "--changes-from" in line


def test_a_baseline_shows_no_changes(tmp_path):
    made = receipts.facts("baseline")
    write_receipt(made, synthetic.windows(made, seed=3), tmp_path / "b.json")
    row = forecast(lock(), changes_of(tmp_path / "b.json"))["domains"][0]
    assert (row["smallest_margin"], row["documents_needed"]) == (None, None)
    assert row["reason"] == "the receipt has no changes of a base domain of this name"


def test_a_baseline_with_a_yardstick_shows_those_of_its_copy(monkeypatch):
    body = copy.deepcopy(receipts.receipt("baseline"))
    increase = {"estimate": 0.001, "low": -0.009, "high": 0.011}
    domains = [{"name": "prose", "role": "base", "documents": 50, "nll_increase": increase}]
    monkeypatch.setattr(module, "intact_receipt", lambda path: body | {"yardstick": {"domains": domains}})
    made = forecast(lock(names=("prose",)), changes_of(Path("b.json")))
    assert made["changes_from"]["changes_of"] == "the base and its 4-bit copy"
    expected = smallest_margin(spread(0.001, -0.009, 0.011, 50, 0.95), 100)
    assert made["domains"][0]["smallest_margin"] == expected


def test_what_cannot_be_told_says_why(pair):
    changes = changes_of(pair)
    (row,) = forecast(lock(names=("law",)), changes)["domains"]
    assert row["reason"] == "the receipt has no changes of a base domain of this name"
    row = forecast(lock(nll=None), changes)["domains"][0]
    assert (row["documents_needed"], row["reason"]) == (None, "no margin is registered")
    row = forecast(lock(20), changes)["domains"][0]
    assert (row["smallest_margin"], row["reason"]) == (
        None,
        "nothing passes on 20 documents, whatever the margin",
    )
    row = forecast(lock(nll=1e-9), changes)["domains"][0]
    assert (row["documents_needed"], row["reason"]) == (None, "the margin needs more than 1000000 documents")


def test_the_tail_guard_asks_for_its_own_documents(pair):
    made = forecast(lock(nll=10.0, document_share=0.02), changes_of(pair))
    assert made["domains"][0]["documents_needed"] == 183  # 0.975 quantile: 1 - 0.025 ** (1 / 183) < 0.02


def test_equal_checkpoints_show_no_spread(monkeypatch, pair):
    body = copy.deepcopy(json.loads(pair.read_text()))
    for row in body["domains"]:
        row["nll_increase"] = {"estimate": 0.0, "low": 0.0, "high": 0.0, "documents": 50, "exact": True}
    monkeypatch.setattr(module, "intact_receipt", lambda path: body)
    assert forecast(lock(), changes_of(pair))["domains"][0]["reason"] == "nothing changed in the receipt"
