"""Gates on what no probe token reaches: experts by their weights, and rows of embedding and head."""

from __future__ import annotations

from typing import Any

import pytest

from moe_atlas.verdict.predicates import derive_predicates
from moe_atlas.views.receipt import ReceiptView
from tests.receipt.synthetic import rows
from tests.verdict.receipts import receipt


def judged(made: dict[str, Any], gate: str) -> tuple[str, list[str]]:
    found = derive_predicates(ReceiptView(made))
    evidence = found["predicates"]["protected_atlas_rewrite"]["evidence"]
    return found["verdict"], [line["result"] for line in evidence if line["gate"] == gate]


def with_experts(changes: list[float | None], thin: list[int], unreached: list[int]) -> dict[str, Any]:
    made = receipt()
    layer = made["layers"][0]  # not protected: nothing else looks at its experts
    layer["changes"]["experts"] = changes
    layer["pair"]["expert_coverage"] = {
        "guarded": len(changes) - len(thin) - len(unreached),
        "thin": thin,
        "unreached": unreached,
    }
    return made


@pytest.mark.parametrize(
    ("changes", "thin", "unreached", "verdict"),
    [
        ([0.01] * 7 + [1.2], [], [7], "inconclusive"),
        ([0.01] * 7 + [1.2], [7], [], "inconclusive"),
        ([0.01] * 7 + [1.2], [], [], "pass"),  # tokens judge it
        ([0.01] * 7 + [0.1], [], [7], "pass"),  # no more than four-bit storage moves
        ([0.01] * 7 + [0.11], [], [7], "inconclusive"),
        ([0.2] * 7 + [0.6], [], [7], "pass"),
        ([0.2] * 7 + [0.61], [], [7], "inconclusive"),
        ([0.0] * 7 + [None], [], [7], "inconclusive"),
        ([0.01, 0.01, *[1.2] * 6], [], [2, 3, 4, 5, 6, 7], "inconclusive"),  # the others are no yardstick
        ([0.01] * 7 + [1.2], [0, 1, 2], [3, 4, 5, 6, 7], "inconclusive"),  # nobody is measured
        ([0.0] * 8, [], [7], "pass"),
    ],
)
def test_an_expert_that_tokens_do_not_judge(changes: Any, thin: Any, unreached: Any, verdict: str) -> None:
    found, results = judged(with_experts(changes, thin, unreached), "unmeasured_experts")
    assert found == verdict
    assert results == ["pass" if verdict == "pass" else "undetermined"]


@pytest.mark.parametrize("stage", ["chart-preserving", "knowledge-expansive"])
@pytest.mark.parametrize("allowed", [False, True])
def test_no_stage_leaves_it_unsaid(stage: str, allowed: bool) -> None:
    made = with_experts([0.01] * 7 + [1.2], [], [7])
    made["probe"]["policy"] |= {"stage": stage, "allow": ["unmeasured_experts"] if allowed else []}
    if stage == "knowledge-expansive":
        made["layers"][1]["pair"]["boundary_drift"] |= {"low": 0.3, "high": 0.4, "simultaneous_low": 0.3}
    found = derive_predicates(ReceiptView(made))["predicates"]["protected_atlas_rewrite"]
    assert found["passed"] is (True if allowed else None)


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({}, "pass"),
        ({"permuted": 1}, "pass"),
        ({"permuted": 2}, "fail"),
        ({"far_longer": 1}, "fail"),
        ({"outlying": {"seen": 0, "unseen": 64}}, "pass"),
        ({"outlying": {"seen": 1, "unseen": 64}}, "undetermined"),
        ({"rows": 272, "outlying": {"seen": 0, "unseen": 4}}, "pass"),
        ({"rows": 272, "outlying": {"seen": 0, "unseen": 5}}, "undetermined"),
    ],
)
@pytest.mark.parametrize("end", ["embedding", "head"])
def test_rows_of_the_vocabulary(changes: dict[str, Any], result: str, end: str) -> None:
    made = receipt()
    made["vocabulary"] = {"embedding": rows(), "head": rows()} | {end: rows(**changes)}
    verdict, results = judged(made, "vocabulary_rows")
    assert results == [result]
    assert verdict == {"pass": "pass", "fail": "fail", "undetermined": "inconclusive"}[result]
    made["probe"]["policy"]["allow"] = ["vocabulary_rows"]
    assert judged(made, "vocabulary_rows") == ("pass", ["not-gated"])


@pytest.mark.parametrize("vocabulary", [None, {"embedding": None, "head": None}])
def test_rows_that_were_not_compared_never_pass(vocabulary: Any) -> None:
    made = receipt()
    made["vocabulary"] = vocabulary
    assert judged(made, "vocabulary_rows") == ("inconclusive", ["undetermined"])


def test_experts_that_were_not_compared_never_pass() -> None:
    made = receipt()
    del made["layers"][1]["changes"]
    assert judged(made, "unmeasured_experts") == ("inconclusive", ["undetermined"])


def test_the_guard_of_single_experts_alone_preserves_nothing() -> None:
    """It is gated unasked: a policy that gates nothing else would pass by it."""
    made = receipt()
    rewrite = made["probe"]["policy"]["rewrite"]
    rewrite |= {key: None for key in rewrite if key != "expert_content"}
    assert (
        derive_predicates(ReceiptView(made))["predicates"]["protected_atlas_rewrite"]["outcome"]
        == "undetermined"
    )


def test_what_is_open_does_not_excuse_what_failed() -> None:
    made = with_experts([0.01] * 7 + [1.2], [], [7])
    made["layers"][1]["pair"]["boundary_drift"] |= {"low": 0.3, "high": 0.4, "simultaneous_low": 0.3}
    assert judged(made, "unmeasured_experts") == ("fail", ["undetermined"])


@pytest.mark.parametrize(("embedding", "head", "stored", "verdict"), [
    (True, True, 1, "pass"),
    (True, False, 0, "pass"),  # a tied head is the embedding
    (True, False, 1, "inconclusive"),
    (False, True, 1, "inconclusive"),
    (False, False, 0, "inconclusive"),
])  # fmt: skip
def test_rows_that_nobody_compared_are_open(embedding: bool, head: bool, stored: int, verdict: str) -> None:
    made = receipt()
    made["vocabulary"] = {"embedding": rows() if embedding else None, "head": rows() if head else None}
    classes = made["weights"]["classes"]
    classes["head"] = classes["routed_expert"] | {"tensors": stored}
    assert judged(made, "vocabulary_rows")[0] == verdict
