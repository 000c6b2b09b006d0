"""The charts: what they draw is what the receipt and its window data say, at any size of model."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_atlas.report.html import audit_page
from moe_atlas.report.html.charts import curves, damage
from moe_atlas.report.html.charts.documents import Documents, by_domain, windows_beside
from moe_atlas.report.html.charts.scales import runs, span
from moe_atlas.report.html.heat import CELLS_UP_TO, legend
from moe_atlas.views.measured import DomainRow
from moe_atlas.views.receipt import ReceiptView
from tests.receipt import synthetic
from tests.report import receipts

PATH = Path("receipt.json")
STYLE = (Path(damage.__file__).parents[1] / "templates/style.css").read_text(encoding="utf-8")
SIZE = 2 << 20


def deep(layers: int, experts: int) -> dict[str, Any]:
    """A receipt of many layers of many experts; the upper half is protected, and its last layer is over its budgets."""
    receipt = receipts.receipt(scale=1.0)
    template, lines = receipt["layers"][0], receipt["predicates"]["protected_atlas_rewrite"]["evidence"]
    of_layer = [line for line in lines if line.get("layer") == 2]
    receipt["layers"], receipt["probe"]["protected_layers"] = [], list(range(layers // 2, layers))
    kept = [line for line in lines if line.get("layer") is None]
    for number in range(layers):
        layer = copy.deepcopy(template) | {
            "layer": number,
            "experts": experts,
            "protected": number >= layers // 2,
        }
        for side in ("base", "tuned"):
            layer[side]["expert_share"] = [
                0.0 if (n + number) % 7 == 0 else 8 / experts for n in range(experts)
            ]
        layer["pair"]["boundary_drift"] |= {"estimate": 0.001 * number, "low": 0.0005 * number}
        layer["pair"]["boundary_drift"] |= {"high": 0.002 * number, "simultaneous_low": 0.0004 * number}
        receipt["layers"].append(layer)
        result = "fail" if number == layers - 1 else "pass"
        kept += [line | {"layer": number, "result": result} for line in of_layer if layer["protected"]]
    receipt["predicates"]["protected_atlas_rewrite"]["evidence"] = kept
    return receipt


def test_a_large_model_is_shown_as_curves_and_stays_small():
    receipt = deep(61, 384)
    page = audit_page(ReceiptView(receipt), PATH)
    assert len(page.encode()) < SIZE
    assert page.count("<figcaption>boundary, budget 0.2</figcaption>") == 1
    assert "<details><summary>The 12 layers that reach furthest, in numbers</summary>" in page
    body = page[page.index('<table class="heat">') :]
    assert body[: body.index("</table>")].count('<th scope="row">') == CELLS_UP_TO + 1
    assert "boundary at most 0.06 in layer 60, budget 0.2, 1 layers over it" in page


def test_a_small_model_keeps_its_cells():
    page = audit_page(ReceiptView(receipts.receipt()), PATH)
    assert "curve-boundary-drift" not in page
    assert "that reach furthest" not in page


def test_a_point_carries_the_bounds_that_decide():
    receipt = deep(14, 16)
    receipt["layers"][13]["pair"]["boundary_drift"]["pass_high"] = 0.5
    channel = next(channel for channel in curves.GATED if channel.key == "boundary_drift")
    found = {point.layer: point for point in curves.points(ReceiptView(receipt), channel)}
    assert (
        found[13][1:] == pytest.approx((0.013, 0.0052, 0.5, "fail"), abs=1e-12) or found[13].result == "fail"
    )
    assert (found[13].low, found[13].high) == (pytest.approx(0.0052), 0.5)
    assert found[3].result == "not-gated"


def test_what_each_document_lost_is_what_numpy_finds():
    made = receipts.facts()
    windows = synthetic.windows(made, seed=3, scale=40.0)
    found = list(by_domain(ReceiptView(receipts.receipt(scale=40.0)), windows))
    assert [one.domain.name for one in found] == [row["name"] for row in receipts.receipt()["domains"]]
    for number, one in enumerate(found):
        lost: dict[int, list[float]] = {}
        for at, domain in enumerate(windows["windows.domain"]):
            if domain == number:
                change = float(windows["output.nll_tuned"][at] - windows["output.nll_base"][at])
                lost.setdefault(int(windows["windows.document"][at]), []).append(change)
        expected = sorted(((sum(v) / len(v), k) for k, v in lost.items()), reverse=True)
        assert [document for document, _ in one.worst(3)] == [document for _, document in expected[:3]]
        assert one.increase_C.mean() == pytest.approx(np.mean([change for change, _ in expected]))


def test_documents_without_a_finite_loss_are_counted_and_not_drawn():
    made = receipts.facts()
    windows = dict(synthetic.windows(made, seed=3))
    tuned = np.array(windows["output.nll_tuned"])
    tuned[:2] = (np.inf, np.nan)
    windows["output.nll_tuned"] = tuned
    first = next(by_domain(ReceiptView(receipts.receipt()), windows))
    assert first.broken == 2
    assert np.isfinite(first.increase_C).all()
    assert "2 not finite" in damage.worst_words(first)


def test_a_page_names_the_worst_documents_where_window_data_are_at_hand(tmp_path):
    path = receipts.on_disk(tmp_path, scale=40.0)
    body = receipts.receipt(scale=40.0)
    view = ReceiptView(body | {"evidence": body["evidence"] | {"windows": "receipt.windows.safetensors"}})
    assert windows_beside(view, tmp_path / "elsewhere" / "receipt.json") is None
    windows = synthetic.windows(receipts.facts(), seed=3, scale=40.0)
    worst = next(by_domain(view, windows)).worst(1)[0]
    page = audit_page(view, path, windows)
    assert f"worst documents: {worst[0]} ({worst[1]:+.3g})" in page
    assert "worst documents" not in audit_page(view, path)


def test_of_many_domains_those_with_the_worst_documents_are_drawn():
    found = [
        Documents(DomainRow({"name": f"d{n}", "role": "base"}), np.array([n]), np.array([float(-n)]), 0)
        for n in range(damage.PANELS + 2)
    ]
    drawn = str(damage.documents(found[::-1], None, "nats a byte"))
    names = re.findall(r">(d\d) \(base\), worst", drawn)
    assert names == [f"d{n}" for n in reversed(range(damage.PANELS))]


def test_a_single_equal_loss_can_be_drawn():
    row = DomainRow({"name": "x", "role": "base"})
    one = Documents(row, np.array([4]), np.array([0.0]), 0)
    assert "4 (+0)" in str(damage.documents([one], None, "nats a byte"))


@pytest.mark.parametrize(
    ("lowest", "highest", "limit", "least"),
    [(0.0, 1e-9, 0.2, 0.2), (0.5, 0.50001, None, 0.1), (-0.1, 3.0, 0.2, 0.2), (0.0, 0.0, None, 0.0)],
)
def test_an_axis_shows_the_limit_and_blows_up_no_noise(lowest, highest, limit, least):
    bottom, top = span(lowest, highest, limit, least)
    assert bottom < lowest <= highest < top
    assert top - bottom >= least
    assert limit is None or bottom < 0.0 < limit < top


def test_a_colour_scale_has_numbers_and_grows():
    judged, measured = (scale["steps"] for scale in legend())
    for steps in (judged, measured):
        assert all(re.search(r"\d", step["says"]) for step in steps)
        assert [step["heat"] for step in steps] == sorted({step["heat"] for step in steps})
    assert [step["tone"] for step in judged] == ["pass", "pass", "undetermined", "fail", "fail"]
    assert {step["tone"] for step in measured} == {"not-gated"}


def test_a_channel_without_a_budget_is_coloured_as_measured():
    receipt = receipts.receipt()
    receipt["probe"]["policy"]["rewrite"]["content"] = None
    for line in receipt["predicates"]["protected_atlas_rewrite"]["evidence"]:
        if line["gate"] == "content":
            line |= {"result": "not-gated", "budget": None, "reason": "no budget registered"}
    page = audit_page(ReceiptView(receipt), PATH)
    assert page.count('<td class="not-gated" style="--heat:') >= 2
    assert re.search(r"\.not-gated \{ --tone: var\(--measured\); \}", STYLE)
    assert STYLE.count("--measured:") == 3


def test_no_width_is_fixed_that_a_phone_does_not_have():
    screen = STYLE[: STYLE.index("@page")]
    for rule in re.findall(r"(?<!max-)(?:min-)?width: ([^;}]*)", screen):
        fixed = [float(size) for size in re.findall(r"([\d.]+)rem", rule.split("min(")[0])]
        assert all(size <= 12 for size in fixed), rule


def test_paper_repeats_headings_and_breaks_no_word_and_no_figure():
    paper = STYLE[STYLE.index("@page") :]
    assert "thead { display: table-header-group; }" in paper
    assert re.search(r"figure, tr,[^{]*\{ break-inside: avoid; \}", paper)
    assert "h2, h3, caption, figcaption { break-after: avoid; }" in paper
    assert re.findall(r"([^{}]*)\{[^}]*overflow-wrap: anywhere; min-width: 6em", paper) == [
        "\n  th[scope=row], td.wrap, td.name "
    ]
    assert paper.count("overflow-wrap: anywhere") == 1


def test_layers_without_a_gap_are_one_run():
    assert runs([0, 1, 2, 5, 7, 8]) == [(0, 2), (5, 5), (7, 8)]
    assert runs([]) == []
