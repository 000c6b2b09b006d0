"""A plain sentence for each predicate: damage before geometry, in words that follow from the evidence."""

from __future__ import annotations

from typing import Any

import pytest

from moe_atlas.report import figures, words
from moe_atlas.report.head import head
from moe_atlas.report.sentences import sentences, unjudged
from moe_atlas.views.judged import EvidenceLine
from moe_atlas.views.receipt import ReceiptView
from tests.report import receipts
from tests.report.test_qualified import receipt as unjudged_receipt


def told(receipt: dict[str, Any]) -> dict[str, tuple[str, str]]:
    found = sentences(ReceiptView(receipt))
    assert [one.about for one in found] == ["damage", "atlas", "task"]
    return {one.about: (one.result, one.text) for one in found}


def with_evidence(predicate: str, lines: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    receipt = receipts.receipt(scale=40.0)
    full = dict.fromkeys(("estimate", "low", "high", "simultaneous_low", "budget", "reason"))
    receipt["predicates"][predicate] |= {"evidence": [full | line for line in lines]} | facts
    return receipt


def failed(gate: str, layer: int, estimate: float, budget: float) -> dict[str, Any]:
    return {"gate": gate, "layer": layer, "estimate": estimate, "budget": budget, "result": "fail"}


def test_a_fail_says_what_was_damaged_and_what_moved_with_multiples():
    found = told(receipts.receipt(scale=40.0))
    assert found["damage"] == (
        "fail",
        "Code got 0.347 nats a byte worse (6.9 × margin 0.05); a window of canary got worse (3 × limit 0.5).",
    )
    assert found["atlas"] == (
        "fail",
        "The same states now go to other experts in both protected layers, most in layer 4 (1.9 × the budget); "
        "the experts write other updates in both protected layers, most in layer 2 (1.4 × the budget); two more "
        "findings.",
    )
    assert found["task"][0] == "undetermined"


def test_a_pass_names_the_domain_and_the_channel_nearest_to_their_limits():
    found = told(receipts.receipt())
    assert found["damage"][1].endswith("the worst: code got 0.00868 nats a byte worse (0.17 × margin 0.05).")
    assert found["atlas"] == (
        "pass",
        "Within the budgets, the same states still go to the same experts and the experts still write the same "
        "updates; nearest to its budget: transition drift 0.011 (layer 2), 0.22 × budget 0.05.",
    )
    assert found["task"] == (
        "pass",
        "The task was reached, and the atlas was kept (sft nll 1.73, target 1.9).",
    )


def test_an_open_predicate_names_the_gate_that_leaves_it_open():
    found = told(receipts.receipt(scale=4.8))
    assert found["damage"][1].startswith(
        "Whether a base domain was damaged is open: domain code NLL increase"
    )
    assert found["atlas"][1].startswith("Whether the atlas was kept is open: layer 2 coordinate drift 0.0525")
    assert {result for result, _ in found.values()} == {"undetermined"}


def test_what_was_measured_and_not_judged_has_a_tone_of_its_own():
    receipt = unjudged_receipt()
    assert told(receipt)["atlas"] == ("not-gated", "The atlas was measured, not judged.")
    said = next(one for one in head(ReceiptView(receipt)) if one.title == "not judged")
    assert said.result == "not-gated"
    assert said.text.startswith("no budget registered; measured: ")
    assert said.text == unjudged(ReceiptView(receipt))


@pytest.mark.parametrize(
    ("layers", "words_of_layers"),
    [
        ([2], "in layer 2 (2 × the budget)"),
        ([2, 4], "in both protected layers, most in layer 4 (4 × the budget)"),
    ],
)
def test_layers_are_counted_in_words(layers, words_of_layers):
    lines = [failed("boundary", layer, 0.1 * layer, 0.1) for layer in layers]
    found = told(with_evidence("protected_atlas_rewrite", lines))
    assert found["atlas"][1] == f"The same states now go to other experts {words_of_layers}."


def test_stored_weights_come_before_drift_and_the_rest_is_counted():
    gates = ("content", "boundary", "transition", "coordinate")
    lines = [failed(gate, 2, 0.2, 0.1) for gate in gates]
    lines += [{"gate": "weights", "class": "router", "result": "fail", "reason": "1 of 2 changed"}]
    text = told(with_evidence("protected_atlas_rewrite", lines))["atlas"][1]
    assert text == (
        "Class router weight rule (1 of 2 changed); the same states now go to other experts in layer 2 (2 × the "
        "budget); three more findings."
    )


def test_broken_numbers_are_said_as_they_stand_in_the_evidence():
    reason = "NaN or infinity in 3 of 36 windows, from layer 2 on, where the base has none"
    line = {"gate": "non_finite_output", "domain": "prose", "result": "fail", "reason": reason}
    text = told(with_evidence("base_domain_damage", [line]))["damage"][1]
    assert text == f"Domain prose NaN or infinity ({reason})."


def test_a_divergence_alone_is_damage_and_beside_a_loss_no_news():
    kl = {"gate": "kl", "domain": "prose", "estimate": 0.6, "budget": 0.3, "result": "fail"}
    loss = {"gate": "nll_increase", "domain": "prose", "estimate": 0.2, "budget": 0.1, "result": "fail"}
    found = told(with_evidence("base_domain_damage", [kl]))["damage"][1]
    assert found == "The predictions on prose left the base's (2 × limit 0.3)."
    found = told(with_evidence("base_domain_damage", [loss, kl]))["damage"][1]
    assert found == "Prose got 0.2 nats a byte worse (2 × margin 0.1)."


def test_a_yardstick_stands_behind_the_multiple_of_a_limit():
    loss = {"gate": "nll_increase", "domain": "prose", "estimate": 0.2, "budget": 0.1, "result": "fail"}
    receipt = with_evidence("base_domain_damage", [loss | {"times_copy": 1.3}])
    assert (
        told(receipt)["damage"][1] == "Prose got 0.2 nats a byte worse (2 × margin 0.1, 1.3 × a 4-bit copy)."
    )
    moved = failed("boundary", 2, 0.4, 0.2) | {"times_copy": 5.0}
    text = told(with_evidence("protected_atlas_rewrite", [moved]))["atlas"][1]
    assert text.endswith("in layer 2 (2 × the budget, 5 × a 4-bit copy).")


def test_a_token_of_a_tokenizer_is_no_byte():
    receipt = receipts.receipt(scale=40.0)
    receipt["probe"]["tokenizer"] = {"kind": "file", "sha256": "ab" * 32}
    assert "0.347 nats a token worse" in told(receipt)["damage"][1]


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [(2.58, 0.22, "12 ×"), (0.05, 0.1, "0.5 ×"), (0.0, 0.1, "0 ×"), (1234.0, 1.0, "1\u202f234 ×")],
)
def test_a_number_is_a_multiple_of_its_limit(value, limit, text):
    assert figures.times(value, limit) == text


@pytest.mark.parametrize(("value", "limit"), [(None, 0.1), (0.1, None), (-0.1, 0.1), (0.1, 0.0), (0.1, -1.0)])
def test_what_no_multiple_describes_has_none(value, limit):
    assert figures.times(value, limit) == ""


def test_a_target_has_no_multiple():
    line = {"gate": "task_success", "domain": "x", "estimate": 0.9, "budget": 0.8}
    assert figures.limit(EvidenceLine(line)) == "target 0.8"
    assert words.drift(ReceiptView({}), EvidenceLine(failed("content", 3, 0.9, 0.3))) == (
        "content drift 0.9 (layer 3), 3 × budget 0.3"
    )


def test_a_baseline_tests_nothing():
    assert sentences(ReceiptView(receipts.receipt("baseline"))) == []
