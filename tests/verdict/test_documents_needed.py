"""An INCONCLUSIVE says how many documents would decide it, from the spread that was measured."""

from __future__ import annotations

import math
from typing import Any

import pytest

from moe_atlas.verdict.claims import derive_claims
from moe_atlas.verdict.documents_needed import most_wanting
from moe_atlas.verdict.next_steps import derive_next_steps
from moe_atlas.verdict.predicates import derive_predicates
from moe_atlas.views.receipt import ReceiptView
from tests.verdict.receipts import gated, interval, receipt, set_path

Z99, Z975, Z90 = 2.3263479, 1.9599640, 1.2815516


def judged(path: str, value: Any) -> dict[str, Any]:
    made = set_path(receipt(), path, value)
    made["probe"]["policy"]["confidence"] = 0.95
    made |= derive_predicates(ReceiptView(made))
    made["claims"] = derive_claims(ReceiptView(made))
    made["next_steps"] = derive_next_steps(ReceiptView(made))
    return made


def loss(estimate: float, se: float) -> dict[str, Any]:
    """A mean of 100 documents with a normal estimate; the margin is 0.02."""
    low, high = estimate - Z975 * se, estimate + Z975 * se
    return interval(low, high) | {"pass_high": estimate + Z99 * se, "effective_documents": 100.0}


def test_a_loss_that_would_pass_on_more_documents_says_on_how_many() -> None:
    made = judged("domains.0.nll_increase", loss(0.005, 0.01))
    assert made["verdict"] == "inconclusive"
    expected = 580  # 578.5, with two digits
    assert math.ceil(100 * ((Z99 + Z90) * 0.01 / 0.015) ** 2) == 579
    (step,) = made["next_steps"]
    assert step["first"].startswith(
        f"about {expected} documents would decide nll_increase of domain prose (100 now; "
    )
    assert "90% chance of a pass" in step["first"]


def test_a_loss_that_would_fail_says_so() -> None:
    needed = most_wanting(ReceiptView(judged("domains.0.nll_increase", loss(0.03, 0.01))))
    assert needed is not None
    assert (needed.outcome, needed.needed) == ("fail", math.ceil(100 * ((Z975 + Z90) * 0.01 / 0.01) ** 2))


def test_a_drift_is_asked_for_by_its_layer_and_its_simultaneous_bound() -> None:
    value = gated(0.05, 0.13, simultaneous_low=0.03, pass_high=0.14, effective_documents=100.0)
    needed = most_wanting(ReceiptView(judged("layers.1.pair.boundary_drift", value)))
    assert needed is not None
    assert (needed.gate, needed.where, needed.outcome) == ("boundary", "layer 1", "pass")
    se = 0.08 / 2 / Z975
    assert needed.needed == math.ceil(100 * ((0.05 + Z90 * se) / 0.01) ** 2)


def test_a_drift_that_would_fail_is_asked_for_by_the_bound_over_all_layers() -> None:
    value = gated(0.11, 0.19, simultaneous_low=0.07, pass_high=0.2, effective_documents=100.0)
    needed = most_wanting(ReceiptView(judged("layers.1.pair.boundary_drift", value)))
    assert needed is not None
    se = 0.08 / 2 / Z975
    assert (needed.outcome, needed.needed) == ("fail", math.ceil(100 * ((0.08 + Z90 * se) / 0.05) ** 2))


def test_a_gate_that_passed_wants_nothing() -> None:
    made = set_path(receipt(), "domains.1.nll_increase", loss(0.0, 0.001))
    made["probe"]["policy"]["confidence"] = 0.95
    made["identity"] = None
    made |= derive_predicates(ReceiptView(made))
    assert made["verdict"] == "inconclusive"
    assert most_wanting(ReceiptView(made)) is None


def test_an_estimate_at_the_margin_is_decided_by_no_number() -> None:
    (step,) = judged("domains.0.nll_increase", loss(0.02, 0.01))["next_steps"]
    assert "so near its limit that more documents will not decide it" in step["first"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("identity", None),  # no mean
        ("domains.0.nll_increase", interval(None, None)),
        ("domains.0.nll_increase", interval(0.0, 0.03)),  # without the bound of a pass
        ("domains.0.damaged_documents.share_high", 0.2),
    ],
)
def test_a_gate_that_rests_on_no_mean_promises_nothing(path: str, value: Any) -> None:
    made = judged(path, value)
    assert made["verdict"] == "inconclusive"
    assert most_wanting(ReceiptView(made)) is None
    assert "documents would decide" not in made["next_steps"][0]["first"]


def test_the_gate_that_needs_most_is_named() -> None:
    made = set_path(receipt(), "domains.1.nll_increase", loss(0.015, 0.01))
    made["probe"]["policy"]["confidence"] = 0.95
    set_path(made, "domains.0.nll_increase", loss(0.005, 0.01))
    made |= derive_predicates(ReceiptView(made))
    needed = most_wanting(ReceiptView(made))
    assert needed is not None
    assert needed.where == "domain code"
