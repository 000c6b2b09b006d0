"""The HTML report: complete in itself, accessible, true to the receipt, and inert whatever the receipt says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moe_atlas.report.html import audit_page, history_page
from moe_atlas.report.html.history import PANELS, _least, _ticks, _value
from moe_atlas.text import number
from moe_atlas.views.receipt import ReceiptView
from tests.report import receipts

PATH = Path("receipt.json")
KINDS = {
    "pass": lambda: receipts.receipt(),
    "fail": lambda: receipts.receipt(scale=40.0),
    "baseline": lambda: receipts.receipt("baseline"),
    "hostile": receipts.hostile,
    "history": receipts.history,
}
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; nesting must be proper."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module", params=KINDS)
def page(request):
    made = KINDS[request.param]()
    return Page(history_page(made) if request.param == "history" else audit_page(ReceiptView(made), PATH))


def test_nothing_is_fetched_and_nothing_runs(page):
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "img", "object", "embed", "form", "base"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)


def test_identifiers_are_unique_and_references_resolve(page):
    identifiers = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(identifiers) == len(set(identifiers))
    known = set(identifiers)
    for tag, attributes in page.tags:
        for value in (attributes.get("href"), attributes.get("xlink:href")):
            if value and value.startswith("#"):
                assert value[1:] in known, (tag, value)
        for value in attributes.values():
            assert set(re.findall(r"url\(#([^)]*)\)", value or "")) <= known


def test_every_chart_has_a_text_alternative_and_takes_its_colours_from_the_theme(page):
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert charts
    known = {attributes.get("id"): tag for tag, attributes in page.tags}
    for chart in charts:
        assert chart["role"] == "img"
        assert [known[name] for name in chart["aria-labelledby"].split()] == ["title", "desc"]
    drawn = [a["style"] for t, a in page.tags if t in ("path", "text", "use") and a.get("style")]
    assert any("var(--" in style for style in drawn)
    assert not any(re.search(r"#[0-9a-f]{6}", style) for style in drawn)


def test_tables_have_scoped_headings_and_can_be_scrolled_by_keyboard(page):
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")
    regions = [attributes for _, attributes in page.tags if attributes.get("class") == "scroll"]
    assert regions
    assert all(one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in regions)


def test_the_reader_meets_verdict_reasons_and_next_step_before_anything_else():
    text = Page(audit_page(ReceiptView(receipts.receipt(scale=40.0)), PATH)).text
    places = [text.index(part) for part in ("✗ FAIL", "✗ damage:", "✗ atlas:", "? task:")]
    places += [text.index(part) for part in ("Change of loss, nats a byte", "Why", "What to do next")]
    places += [
        text.index(f" {part} ")
        for part in (
            "Damage, domain by domain",
            "The three predicates",
            "Layers and channels",
            "Weights ledger",
        )
    ]
    assert places == sorted(places)


def test_the_heat_map_says_what_the_receipt_says():
    receipt = receipts.receipt(scale=40.0)
    text = audit_page(ReceiptView(receipt), PATH)
    table = Page(
        text[text.index('<table class="heat">') : text.index("</table>", text.index('class="heat"')) + 8]
    )
    for layer in receipt["layers"]:
        for key in ("coordinate_drift_z", "boundary_drift", "overlap_drop", "load_cv_rise"):
            value = layer["pair"][key]
            assert (
                f"{number(value['estimate'])} {number(value['low'])} … {number(value['high'])}" in table.text
            )
            if layer["protected"]:
                assert f"≥ {number(value['simultaneous_low'])}" in table.text
    failed = [c for t, a in table.tags if t == "td" for c in [a.get("class")] if c == "fail"]
    gates = receipt["predicates"]["protected_atlas_rewrite"]["evidence"]
    layered = [
        line
        for line in gates
        if line["result"] == "fail" and "layer" in line and line["gate"] != "refinement_margin"
    ]
    assert len(failed) == len(layered) > 0


def test_names_from_files_are_shown_as_text():
    text = audit_page(ReceiptView(receipts.hostile()), Path(receipts.HOSTILE))
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    words = Page(text).text
    assert "x<script>alert(1)</script>" in words
    assert "$x^$" in words


def test_clones_and_untrained_experts_are_named():
    text = Page(audit_page(ReceiptView(receipts.receipt()), PATH)).text
    assert "2 clones hold the same values: 3, 5" in text
    assert "2 init-like look untrained, unlike before: 4" in text


def test_a_baseline_licenses_nothing():
    text = Page(audit_page(ReceiptView(receipts.receipt("baseline")), PATH)).text
    assert "BASELINE" in text
    assert "It licenses no claim of preservation" in text
    assert "The three predicates" not in text


def test_a_baseline_has_no_columns_of_a_comparison():
    text = Page(audit_page(ReceiptView(receipts.receipt("baseline")), PATH)).text
    for heading in ("before and after", "tuned", "relative change", "registered rule"):
        assert heading not in text.split("What this receipt lets you say")[0], heading


def test_a_long_history_labels_every_tick_with_its_own_step():
    gates = [{"seq": seq, "body": {"step": 100 * seq}} for seq in range(3, 60)]
    places, labels = _ticks(gates)
    assert len(places) <= 8
    assert labels == [f"{place}\n({100 * place})" for place in places]
    assert _ticks([{"seq": 1, "body": {}}]) == ([1], ["1"])


def test_a_page_depends_on_nothing_but_its_receipt():
    assert audit_page(ReceiptView(receipts.receipt()), PATH) == audit_page(
        ReceiptView(receipts.receipt()), PATH
    )


def test_a_history_says_state_action_and_every_event():
    found = receipts.history()
    text = history_page(found)
    words = Page(text).text
    assert "<script" not in text
    assert words.index("run sft-640: ") < words.index("do now") < words.index("Gates over time")
    assert "WAITING" in words  # the last entry is a resume, which tests nothing
    for colour in ("✓ GREEN: clear", "! YELLOW: first-bad", "✗ RED: intervene", "◇ resume: waiting"):
        assert colour in words
    assert "replaces registration abababababab" in words
    assert "re-registered" in words
    assert words.count(" audit ") >= 5


def test_a_history_shows_the_loss_first_with_intervals_and_no_noise_as_news():
    found = receipts.history()
    entries = found.describe()["entries"]
    gate = next(entry for entry in entries if entry["kind"] == "audit")
    assert list(PANELS)[:2] == ["base_nll", "nll"]
    for key in PANELS:
        low, high = gate["body"]["bounds"][key]
        assert low <= _value(gate, key) <= high
    body = gate["body"]
    assert _least(body, "base_nll", 2.0) == body["margin"] == 0.05
    assert _least(body, "min_entropy", 2.0) == body["budgets"]["entropy_drop"]
    assert _least(body, "dead_experts", 0.0) == body["budgets"]["dead_share_rise"] * body["health"]["experts"]
    assert _least({}, "overlap", 0.3) == pytest.approx(0.03)
    text = Page(history_page(found)).text
    assert "NLL of the base domains" in text
    assert number(gate["body"]["base_nll"]) in text


def test_an_entry_of_an_earlier_release_has_no_bounds_and_is_drawn():
    found = receipts.history()
    for entry in found.snapshot.entries:
        for key in ("bounds", "base_nll", "margin"):
            entry.body.pop(key, None)
    assert "NLL of the objective" in history_page(found)
