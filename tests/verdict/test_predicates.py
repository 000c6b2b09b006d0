"""The verdict by truth table, and every way in which something missing could have passed."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest

from moe_atlas.verdict.damage import damage_gates
from moe_atlas.verdict.gates.gate import Gate, worst_first
from moe_atlas.verdict.predicates import NAMES, derive_predicates, verdict_of
from moe_atlas.views.measured import Interval
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.view import StrangeReceipt
from tests.verdict.receipts import (
    BASE,
    BUDGETS,
    CHANNELS,
    TUNED,
    attempt,
    gated,
    interval,
    receipt,
    rewritten,
    row,
    set_path,
    tensors,
)


def judged(made: dict[str, Any]) -> tuple[str, dict[str, tuple[str, bool | None]]]:
    found = derive_predicates(ReceiptView(made))
    return found["verdict"], {
        name: (value["outcome"], value["passed"]) for name, value in found["predicates"].items()
    }


ATLAS, DAMAGE, TASK = NAMES


def test_a_clean_pair_passes() -> None:
    verdict, outcomes = judged(receipt())
    assert verdict == "pass"
    assert outcomes == {
        ATLAS: ("preserved", True),
        DAMAGE: ("undamaged", True),
        TASK: ("chart-preserving", True),
    }


@pytest.mark.parametrize("values", list(itertools.product([True, False, None], repeat=3)))
def test_verdict_truth_table(values: tuple[bool | None, ...]) -> None:
    found = verdict_of({name: {"passed": value} for name, value in zip(NAMES, values, strict=True)})
    expected = "fail" if False in values else "inconclusive" if None in values else "pass"
    assert found == expected


def test_a_baseline_tests_nothing() -> None:
    made = receipt() | {"kind": "baseline"}
    assert judged(made) == (None, dict.fromkeys(NAMES, ("untested", None)))


# --- one gated channel at a time -------------------------------------------------------------------------------

BOUNDS = [
    (gated(0.01, 0.0999), "pass"),
    (gated(0.01, 0.1), "undetermined"),  # the budget itself is not below the budget
    (gated(0.05, 0.2), "undetermined"),
    (gated(0.2, 0.3), "fail"),
    (gated(0.2, 0.3) | {"simultaneous_low": 0.1}, "undetermined"),  # not above the budget
    (gated(0.2, 0.3) | {"simultaneous_low": 0.05}, "undetermined"),  # pointwise low alone never fails
    (gated(0.2, 0.3) | {"simultaneous_low": None}, "undetermined"),
    (
        gated(0.05, 0.05) | {"low": None, "high": None, "reason": "no variance between documents"},
        "undetermined",
    ),
    (gated(0.01, 0.05) | {"estimate": None, "low": None, "high": None}, "undetermined"),
    (gated(0.01, 0.05) | {"high": None}, "undetermined"),
    (gated(0.01, 0.05) | {"high": math.nan}, "undetermined"),
    (gated(0.01, 0.05) | {"high": -math.inf}, "undetermined"),
    (gated(0.01, 0.05) | {"estimate": math.nan}, "undetermined"),
    (gated(0.01, 0.05) | {"documents": 29}, "undetermined"),
    (gated(0.2, 0.3) | {"documents": 29}, "undetermined"),
    (gated(0.01, 0.05) | {"documents": 30}, "pass"),
    (gated(0.01, 0.05) | {"documents": None}, "undetermined"),
    # a mean passes by its stricter bound and its effective documents
    (gated(0.01, 0.05) | {"pass_high": 0.0999, "effective_documents": 36.0}, "pass"),
    (gated(0.01, 0.05) | {"pass_high": 0.1, "effective_documents": 36.0}, "undetermined"),
    (gated(0.01, 0.05) | {"pass_high": None, "effective_documents": 100.0}, "undetermined"),
    (gated(0.01, 0.05) | {"pass_high": math.nan, "effective_documents": 100.0}, "undetermined"),
    (gated(0.01, 0.05) | {"pass_high": 0.06, "effective_documents": 35.9}, "undetermined"),
    (gated(0.01, 0.05) | {"pass_high": 0.06}, "undetermined"),
    (gated(0.01, 0.1) | {"pass_high": 0.06, "effective_documents": 100.0}, "undetermined"),
    (gated(0.2, 0.3) | {"pass_high": 0.3, "effective_documents": 31.0}, "fail"),
    ({"estimate": 0.0, "low": 0.0, "high": 0.0, "documents": 3, "exact": True}, "pass"),
    ({"estimate": 0.5, "low": 0.0, "high": 0.0, "documents": 3, "exact": True}, "undetermined"),
    (gated(None, None) | {"not_applicable": True, "reason": "one expert per token"}, "not-applicable"),
    ({}, "undetermined"),
    (None, "undetermined"),
]
OUTCOME = {
    "pass": "preserved",
    "not-applicable": "preserved",
    "fail": "rewritten",
    "undetermined": "undetermined",
}


@pytest.mark.parametrize(("channel", "budget"), list(zip(CHANNELS, BUDGETS, strict=True)))
@pytest.mark.parametrize(("bound", "result"), BOUNDS)
def test_every_channel_in_three_values(channel: str, budget: str, bound: Any, result: str) -> None:
    made = set_path(receipt(), f"layers.1.pair.{channel}", bound)
    found = derive_predicates(ReceiptView(made))["predicates"][ATLAS]
    line = next(line for line in found["evidence"] if line["gate"] == budget and line["layer"] == 1)
    assert line["result"] == result
    assert found["outcome"] == OUTCOME[result]
    assert line["reason"] or result in ("pass", "fail")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("layers.1.pair.content_drift.high", True),
        ("layers.1.pair", []),
        ("layers.1.changes.experts", [0.1, "x"]),
        ("domains.0.documents", "100"),
        ("weights.unreplayed", {}),
        ("vocabulary", []),
        ("identity.breaches", 0),
        ("probe.policy.stage", ...),
    ],
)
def test_a_fact_of_another_type_is_refused_by_its_path(path: str, value: Any) -> None:
    made = set_path(receipt(), path, value)
    dotted = re.sub(r"\.(\d+)", r"[\1]", path)
    with pytest.raises(StrangeReceipt, match=f"^{re.escape(dotted)}"):
        derive_predicates(ReceiptView(made))


def test_channels_of_unprotected_layers_are_not_gated() -> None:
    made = set_path(receipt(), "layers.0.pair.content_drift", gated(0.8, 0.9))
    assert judged(made)[0] == "pass"


def test_a_missing_channel_is_undetermined() -> None:
    assert judged(set_path(receipt(), "layers.1.pair.content_drift", ...))[1][ATLAS] == ("undetermined", None)


def test_a_protected_layer_that_was_not_measured_is_undetermined() -> None:
    made = set_path(receipt(), "probe.protected_layers", [1, 2, 9])
    assert judged(made)[1][ATLAS] == ("undetermined", None)


def test_nothing_protected_is_never_a_pass() -> None:
    assert judged(set_path(receipt(), "probe.protected_layers", []))[1][ATLAS] == ("undetermined", None)


def test_a_budget_left_open_is_named_and_does_not_block() -> None:
    made = set_path(receipt(), "probe.policy.rewrite.load_cv_rise", None)
    found = derive_predicates(ReceiptView(made))["predicates"][ATLAS]
    assert found["outcome"] == "preserved"
    assert [line["result"] for line in found["evidence"] if line["gate"] == "load_cv_rise"] == [
        "not-gated"
    ] * 2


def test_every_budget_left_open_is_never_a_pass() -> None:
    made = receipt()
    made["probe"]["policy"]["rewrite"] = dict.fromkeys((*BUDGETS, "refinement"))
    assert judged(made)[1][ATLAS] == ("undetermined", None)


@pytest.mark.parametrize("budget", [math.nan, math.inf])
def test_a_budget_that_is_not_finite_never_passes(budget: float) -> None:
    made = set_path(receipt(), "probe.policy.rewrite.content", budget)
    assert judged(made)[1][ATLAS] == ("undetermined", None)


@pytest.mark.parametrize("budget", ["0.1", True, [0.1]])
def test_a_budget_that_is_no_number_judges_nothing(budget: Any) -> None:
    made = set_path(receipt(), "probe.policy.rewrite.content", budget)
    with pytest.raises(StrangeReceipt, match="probe.policy.rewrite.content: expected a number, found"):
        judged(made)


def test_everything_not_applicable_is_never_a_pass() -> None:
    made = receipt()
    for layer in made["layers"]:
        layer["pair"] = {key: gated(None, None) | {"not_applicable": True} for key in CHANNELS}
    assert judged(made)[1][ATLAS] == ("undetermined", None)


MARGINS = [
    (interval(0.001, 0.2), "preserved"),
    (interval(0.0, 0.2), "undetermined"),
    (interval(-0.1, 0.2), "undetermined"),
    (interval(-0.1, 0.0), "undetermined"),
    (interval(-0.2, -0.1), "rewritten"),
    (interval(0.001, 0.2) | {"documents": 29}, "undetermined"),
    (interval(None, None) | {"not_applicable": True}, "preserved"),
    (interval(None, None), "undetermined"),
    (interval(0.25, 0.25) | {"exact": True, "documents": 2}, "preserved"),
    (interval(-0.25, -0.25) | {"exact": True, "documents": 100}, "rewritten"),
    (interval(0.1, 0.2) | {"low": math.inf}, "undetermined"),
    (None, "undetermined"),
]


@pytest.mark.parametrize(("margin", "outcome"), MARGINS)
def test_the_refinement_margin_must_be_positive(margin: Any, outcome: str) -> None:
    assert judged(set_path(receipt(), "margins.refinement_margin", margin))[1][ATLAS][0] == outcome


def test_a_rising_set_margin_is_no_evidence() -> None:
    made = set_path(receipt(), "layers.1.tuned.set_margin", interval(5.0, 6.0))
    assert derive_predicates(ReceiptView(made)) == derive_predicates(ReceiptView(receipt()))


# --- weights and identity --------------------------------------------------------------------------------------


def ruled(
    rule: str, kind: str, rows: Any, stage: str = "chart-preserving", **policy: Any
) -> tuple[str, str, str]:
    """Outcome of the atlas, result and reason of the one weight rule."""
    made = receipt(stage)
    made["probe"]["policy"] |= policy
    made["probe"]["policy"]["weights"][rule] = [kind]
    made["weights"]["tensors"] = rows
    atlas = derive_predicates(ReceiptView(made))["predicates"][ATLAS]
    [gate] = [line for line in atlas["evidence"] if line["gate"] == "weights"]
    return atlas["outcome"], gate["result"], gate["reason"]


EVERY_LAYER = [(layer, None, 0) for layer in range(4)]
MOST_EXPERTS = [(layer, expert, 1) for layer in range(4) for expert in range(4)]
RULES = [
    ("must_not_change", "router", {}, "pass", "0 of 8 router tensors changed"),
    ("must_not_change", "router", {"changed": [(2, None, 1)]}, "fail",
     "1 of 8 router tensors changed: layers.2.router.None.1"),
    ("must_not_change", "router", {"changed": EVERY_LAYER}, "fail",
     "4 of 8 router tensors changed: layers.0.router.None.0, layers.1.router.None.0 and 2 more"),
    ("must_not_change", "router", {"changed": "all", "rounded": True}, "fail",
     "8 of 8 router tensors changed: layers.0.router.None.0, layers.0.router.None.1 and 6 more"),
    ("must_change", "router", {}, "fail", "0 of 8 router tensors changed; layers 0–3 untouched"),
    ("must_change", "router", {"changed": [(2, None, 1)]}, "fail",
     "1 of 8 router tensors changed; layers 0–1, 3 untouched"),
    ("must_change", "router", {"changed": EVERY_LAYER}, "pass", "4 of 8 router tensors changed"),
    ("must_change", "router", {"changed": "all", "rounded": True}, "fail",
     "0 of 8 router tensors changed, 8 more were only rounded to another dtype; layers 0–3 untouched"),
    ("must_change", "router", {"changed": "all", "rounded": None}, "undetermined",
     "0 of 8 router tensors changed; layers 0–3 stored in another format, whose rounding cannot be told from a change"),
    ("must_change", "routed_expert", {"experts": 8, "changed": MOST_EXPERTS}, "pass",
     "16 of 64 routed_expert tensors changed; untouched experts in layer 0: 4–7; layer 1: 4–7; layer 2: 4–7; layer 3: "
     "4–7"),
    ("must_change", "routed_expert", {"experts": 8, "changed": MOST_EXPERTS[1:]}, "undetermined",
     "15 of 64 routed_expert tensors changed; most experts of layer 0 untouched"),
    ("must_change", "routed_expert", {"experts": 8, "changed": MOST_EXPERTS[4:]}, "fail",
     "12 of 64 routed_expert tensors changed; layer 0 untouched"),
    ("must_change", "selection_bias", {"kind": "router"}, "not-applicable", "the checkpoints have no such tensors"),
    ("must_not_change", "head", {"kind": "embedding", "layers": 1, "changed": [(0, None, 0)]}, "fail",
     "1 of 2 embedding tensors changed: layers.0.embedding.None.0"),
]  # fmt: skip
OUTCOMES = {
    "pass": "preserved",
    "fail": "rewritten",
    "undetermined": "undetermined",
    "not-applicable": "preserved",
}


@pytest.mark.parametrize(("rule", "kind", "rows", "result", "reason"), RULES)
@pytest.mark.parametrize("stage", ["chart-preserving", "knowledge-expansive"])
def test_weight_rules(
    rule: str, kind: str, rows: dict[str, Any], result: str, reason: str, stage: str
) -> None:
    made = tensors(**({"kind": kind} | rows))
    assert ruled(rule, kind, made, stage) == (OUTCOMES[result], result, reason)


def test_a_policy_may_allow_that_layers_are_frozen() -> None:
    rows = tensors("attention", changed=[(3, None, 0)])
    assert ruled("must_change", "attention", rows)[1] == "fail"
    allowed = ruled("must_change", "attention", rows, allow=["frozen_layers"])
    assert allowed[1:] == ("pass", "1 of 8 attention tensors changed; layers 0–2 untouched")
    assert ruled("must_change", "attention", tensors("attention"), allow=["frozen_layers"])[1] == "fail"


@pytest.mark.parametrize("rule", ["must_change", "must_not_change"])
@pytest.mark.parametrize("rows", [None, [], [row | {"identical": None} for row in tensors("router")]])
def test_a_ledger_that_does_not_say_settles_no_weight_rule(rule: str, rows: Any) -> None:
    assert ruled(rule, "router", rows)[:2] == ("undetermined", "undetermined")


def test_what_only_one_checkpoint_has_is_a_change() -> None:
    made = receipt()
    made["probe"]["policy"]["weights"]["must_not_change"] = ["other"]
    findings = ("nonfinite", "zeroed", "replaced", "missing", "added", "reshaped", "changed")
    lost = {"part": "mtp", "tensors": {"base": 2, "tuned": 0}, **dict.fromkeys(findings, 0), "missing": 2}
    made["weights"] |= {"tensors": tensors("router"), "unreplayed": [lost]}
    assert judged(made)[1][ATLAS][0] == "rewritten"
    made["weights"]["unreplayed"] = [lost | {"part": "derived"}]  # no server uses them
    assert judged(made)[1][ATLAS][0] == "preserved"


@pytest.mark.parametrize("weights", [None, {}, {"classes": None}, {"classes": {}}])
def test_no_ledger_is_undetermined(weights: Any) -> None:
    assert judged(receipt() | {"weights": weights})[1][ATLAS] == ("undetermined", None)


@pytest.mark.parametrize("stage", ["chart-preserving", "knowledge-expansive"])
def test_non_finite_weights_fail_under_any_stage(stage: str) -> None:
    made = set_path(receipt(stage), "weights.classes.routed_expert.nonfinite.tuned", 1)
    verdict, outcomes = judged(made)
    assert verdict == "fail"
    assert outcomes[ATLAS] == ("rewritten", False)


def test_uncounted_non_finite_weights_never_pass() -> None:
    made = set_path(receipt(), "weights.classes.router.nonfinite", {})
    assert judged(made)[1][ATLAS] == ("undetermined", None)


@pytest.mark.parametrize("stage", ["chart-preserving", "knowledge-expansive"])
def test_an_identity_breach_fails_under_any_stage(stage: str) -> None:
    breach = {"layer": 2, "kind": "cloned-experts", "detail": "experts 3 and 4"}
    made = set_path(receipt(stage), "identity.breaches", [breach])
    found = derive_predicates(ReceiptView(made))
    assert found["verdict"] == "fail"
    assert found["predicates"][ATLAS]["evidence"][0]["reason"] == "cloned-experts: experts 3 and 4"


@pytest.mark.parametrize("identity", [None, {}, {"breaches": None}])
def test_unexamined_identity_is_undetermined(identity: Any) -> None:
    assert judged(receipt() | {"identity": identity})[1][ATLAS] == ("undetermined", None)


# --- base-domain damage ----------------------------------------------------------------------------------------

INCREASES = [
    (interval(-0.01, 0.0199), "undamaged"),
    (interval(-0.01, 0.02), "undetermined"),
    (interval(0.01, 0.03), "undetermined"),
    (interval(0.02, 0.03), "undetermined"),
    (interval(0.021, 0.03), "damaged"),
    (interval(0.0, 0.0) | {"low": None, "high": None}, "undetermined"),
    (interval(None, None), "undetermined"),
    (interval(-0.01, 0.0199) | {"high": math.nan}, "undetermined"),
    (interval(-0.01, 0.01) | {"documents": 29}, "undetermined"),
    (interval(0.0, 0.0) | {"exact": True, "documents": 3}, "undamaged"),
    (None, "undetermined"),
]


@pytest.mark.parametrize(("increase", "outcome"), INCREASES)
def test_damage_in_three_values(increase: Any, outcome: str) -> None:
    made = set_path(receipt(), "domains.1.nll_increase", increase)
    passed = {"undamaged": True, "damaged": False, "undetermined": None}[outcome]
    assert judged(made)[1][DAMAGE] == (outcome, passed)


DIVERGENCES = [
    (0.04, interval(0.01, 0.0399), "undamaged", "pass"),
    (0.04, interval(0.01, 0.0399) | {"pass_high": 0.041, "effective_documents": 99.0}, "undetermined", None),
    (0.04, interval(0.01, 0.04), "undetermined", None),
    (0.04, interval(0.041, 0.06), "damaged", "fail"),
    (0.04, interval(None, None), "undetermined", None),
    (0.04, None, "undetermined", None),
    (0.04, interval(0.0, 0.0) | {"exact": True, "documents": 3}, "undamaged", "pass"),
    (None, interval(0.9, 1.1), "undamaged", "not-gated"),
    (None, None, "undamaged", "not-gated"),
    ("0.04", interval(0.01, 0.02), "undetermined", None),
    (math.nan, interval(0.01, 0.02), "undetermined", None),
    (..., interval(0.01, 0.0699), "undamaged", "not-gated"),  # 0.03995 at most: twice nll is 0.04
    (..., interval(0.01, 0.0702), "undetermined", None),
    (..., interval(0.9, 1.1), "undetermined", None),  # nobody fails by a number that nobody registered
    (..., interval(None, None), "undetermined", None),
    (..., None, "undetermined", None),
]


@pytest.mark.parametrize(("limit", "divergence", "outcome", "result"), DIVERGENCES)
def test_the_divergence_gates_by_what_is_registered(
    limit: Any, divergence: Any, outcome: str, result: str | None
) -> None:
    made = set_path(receipt(), "domains.1.kl", divergence)
    if limit is not ...:
        made = set_path(made, "probe.policy.damage.kl", limit)
    passed = {"undamaged": True, "damaged": False, "undetermined": None}[outcome]
    assert judged(made)[1][DAMAGE] == (outcome, passed)
    lines = {gate.where["domain"]: gate for gate in damage_gates(ReceiptView(made)) if gate.gate == "kl"}
    assert set(lines) == {"prose", "code"}
    assert lines["code"].result == (result or "undetermined")


def test_without_any_limit_the_divergence_is_open() -> None:
    made = set_path(receipt(), "probe.policy.damage.nll", None)
    assert {gate.result for gate in damage_gates(ReceiptView(made)) if gate.gate == "kl"} == {"undetermined"}


@pytest.mark.parametrize("documents", [0, 1, 29])
@pytest.mark.parametrize("increase", [interval(-0.01, 0.01), interval(0.5, 0.6)])
def test_under_thirty_documents_everything_is_undetermined(documents: int, increase: Any) -> None:
    made = set_path(receipt(), "domains.0.documents", documents)
    made["domains"][0]["nll_increase"] = increase
    _, outcomes = judged(made)
    assert outcomes[ATLAS] == ("undetermined", None)
    assert outcomes[DAMAGE] == ("undetermined", None)


GUARDS = [
    ({"count": 0, "documents": 100, "share": 0.0, "share_high": 0.0499}, "undamaged"),
    ({"count": 1, "documents": 100, "share": 0.01, "share_high": 0.05}, "undetermined"),
    ({"count": 30, "documents": 100, "share": 0.3, "share_high": 0.4}, "undetermined"),
    ({"count": 0, "documents": 29, "share": 0.0, "share_high": 0.01}, "undetermined"),
    ({"count": 0, "documents": 100, "share": 0.0, "share_high": None}, "undetermined"),
    ({}, "undetermined"),
    (None, "undetermined"),
]


@pytest.mark.parametrize(("guard", "outcome"), GUARDS)
def test_the_tail_guard_blocks_a_pass(guard: Any, outcome: str) -> None:
    assert judged(set_path(receipt(), "domains.0.damaged_documents", guard))[1][DAMAGE][0] == outcome


@pytest.mark.parametrize("limit", ["nll", "document_nll", "document_share"])
@pytest.mark.parametrize("value", [None, ..., "0.02", math.nan])
def test_an_open_damage_limit_never_passes(limit: str, value: Any) -> None:
    made = set_path(receipt(), f"probe.policy.damage.{limit}", value)
    assert judged(made)[1][DAMAGE] == ("undetermined", None)


@pytest.mark.parametrize("index", [0, 2, 3])
def test_non_finite_output_in_any_domain_is_damage(index: int) -> None:
    made = set_path(receipt(), f"domains.{index}.non_finite_windows", 1)
    assert judged(made)[1][DAMAGE] == ("damaged", False)


@pytest.mark.parametrize("key", ["non_finite_windows", "non_finite_base"])
@pytest.mark.parametrize("value", [..., None])
def test_uncounted_non_finite_output_never_passes(key: str, value: Any) -> None:
    made = set_path(receipt(), f"domains.3.{key}", value)
    assert judged(made)[1][DAMAGE] == ("undetermined", None)


@pytest.mark.parametrize("index", [0, 2, 3])
def test_a_base_that_is_not_finite_never_passes(index: int) -> None:
    made = set_path(receipt(), f"domains.{index}.non_finite_base", 2)
    assert judged(made)[1][DAMAGE] == ("undetermined", None)


CANARIES = [
    ({"nll_increase": 0.5, "limit": 0.5, "undefined": 0, "over": 0}, "undamaged"),
    ({"nll_increase": 0.6, "limit": 0.5, "undefined": 0, "over": 1}, "damaged"),
    ({"nll_increase": 0.1, "limit": 0.5, "undefined": 1, "over": 0}, "undetermined"),
    ({"nll_increase": None, "limit": 0.5, "undefined": 0, "over": 0}, "undetermined"),
    ({"nll_increase": 0.1, "limit": None, "undefined": 0, "over": 0}, "undetermined"),
    (None, "undetermined"),
]


@pytest.mark.parametrize(("worst", "outcome"), CANARIES)
def test_canary_windows_have_their_own_limit(worst: Any, outcome: str) -> None:
    assert judged(set_path(receipt(), "domains.2.worst_window", worst))[1][DAMAGE][0] == outcome


def test_no_base_domain_is_never_undamaged() -> None:
    made = receipt()
    made["domains"] = made["domains"][2:]
    _, outcomes = judged(made)
    assert outcomes[DAMAGE] == ("undetermined", None)
    assert outcomes[ATLAS] == ("undetermined", None)


# --- task success and classification ---------------------------------------------------------------------------

SUCCESS = [
    ({"at_most": 1.9}, interval(1.6, 1.89), True),
    ({"at_most": 1.9}, interval(1.6, 1.9), None),
    ({"at_most": 1.9}, interval(1.8, 2.0), None),
    ({"at_most": 1.9}, interval(1.95, 2.0), False),
    ({"at_least": 0.5}, interval(0.51, 0.7), True),
    ({"at_least": 0.5}, interval(0.5, 0.7), None),
    ({"at_least": 0.5}, interval(0.3, 0.49), False),
    ({"at_least": 0.5}, interval(0.51, 0.7) | {"documents": 29}, None),
    ({"at_least": 0.5}, interval(None, None), None),
    ({"at_most": 0.0}, interval(0.0, 0.0) | {"exact": True, "documents": 2}, True),
    ({"at_most": -0.1}, interval(0.0, 0.0) | {"exact": True, "documents": 2}, False),
    ({"at_least": 0.0}, interval(0.0, 0.0) | {"exact": True, "documents": 2}, True),
    ({"at_least": 0.1}, interval(0.0, 0.0) | {"exact": True, "documents": 2}, False),
    ({}, interval(0.0, 0.1), None),
    ({"at_most": None}, interval(0.0, 0.1), None),
]


@pytest.mark.parametrize(("limit", "value", "reached"), SUCCESS)
def test_task_success_in_three_values(limit: dict, value: dict, reached: bool | None) -> None:
    made = receipt()
    made["domains"][3]["success"] = {"metric": "nll", "relative_to_base": False, "value": value} | limit
    expected = {
        True: ("chart-preserving", True),
        False: ("task-not-reached", False),
        None: ("undetermined", None),
    }
    assert judged(made)[1][TASK] == expected[reached]


def test_one_missed_task_of_two_is_missed() -> None:
    made = receipt()
    second = row("other", "task")
    second["success"]["value"] = interval(2.5, 2.6)
    made["domains"].append(second)
    assert judged(made)[1][TASK] == ("task-not-reached", False)


def test_a_missed_task_earns_no_credit_for_the_atlas() -> None:
    made = set_path(receipt(), "domains.3.success.value", interval(2.5, 2.6))
    assert judged(made)[0] == "fail"


def test_a_task_domain_without_rule_is_undetermined() -> None:
    assert judged(set_path(receipt(), "domains.3.success", ...))[1][TASK] == ("undetermined", None)


def test_no_task_must_be_said() -> None:
    made = receipt()
    made["domains"] = made["domains"][:3]
    assert judged(made)[1][TASK] == ("undetermined", None)
    made["probe"]["policy"]["task"] = "none"
    assert judged(made) == (
        "pass",
        {ATLAS: ("preserved", True), DAMAGE: ("undamaged", True), TASK: ("not-applicable", True)},
    )


ATTEMPTS = [
    ([], "chart-redefining"),
    ([attempt()], "knowledge-expansive"),
    ([attempt(), attempt(task_reached=True)], "misclassified"),
    ([attempt(), attempt(task_reached=None)], "undetermined"),
    ([attempt(protected_atlas_rewrite="rewritten", task_reached=True)], "chart-redefining"),
    ([attempt(protected_atlas_rewrite="undetermined", task_reached=True)], "undetermined"),
    ([attempt(protected_atlas_rewrite="undetermined")], "chart-redefining"),
    ([attempt(base_digest="00" * 32)], "chart-redefining"),
    ([attempt(lock_digest="00" * 32)], "chart-redefining"),
    ([attempt(base_digest=None)], "chart-redefining"),
    ([attempt(lock_digest="00" * 32, task_reached=True)], "chart-redefining"),
    ([attempt(nothing_tuned=True)], "chart-redefining"),
    ([attempt(nothing_tuned=None)], "chart-redefining"),
    ([attempt(tuned_digest=BASE)], "chart-redefining"),
    ([attempt(tuned_digest=None)], "chart-redefining"),
    ([attempt(tuned_digest=TUNED)], "chart-redefining"),  # the pair under judgement
    ([attempt(tuned_digest=TUNED, task_reached=True)], "chart-redefining"),
    ([attempt(tuned_weights=BASE)], "chart-redefining"),
    ([attempt(tuned_weights=None)], "chart-redefining"),
    ([attempt(tuned_weights=TUNED)], "chart-redefining"),  # the pair in another layout
    ([attempt(task_improved=False)], "chart-redefining"),  # a tune of next to nothing
    ([attempt(task_improved=None)], "chart-redefining"),
    ([attempt(task_improved=False), attempt()], "knowledge-expansive"),
]
BY_STAGE = {
    "chart-preserving": {"undetermined": None},
    "knowledge-expansive": {
        "chart-redefining": None,
        "knowledge-expansive": True,
        "misclassified": False,
        "undetermined": None,
    },
}


@pytest.mark.parametrize(("attempts", "outcome"), ATTEMPTS)
@pytest.mark.parametrize("stage", list(BY_STAGE))
def test_attempts_decide_whether_a_rewrite_was_needed(attempts: list, outcome: str, stage: str) -> None:
    made = rewritten(receipt(stage)) | {"attempts": attempts}
    verdict, outcomes = judged(made)
    assert outcomes[TASK] == (outcome, BY_STAGE[stage].get(outcome, False))
    assert outcomes[ATLAS] == ("rewritten", stage == "knowledge-expansive")
    if stage == "chart-preserving":
        assert verdict == "fail"
    else:
        assert verdict == {True: "pass", False: "fail", None: "inconclusive"}[outcomes[TASK][1]]


@pytest.mark.parametrize("base", [interval(1.6, 1.7), interval(1.8, 2.0), interval(None, None), None])
def test_no_rewrite_was_needed_for_what_the_base_may_reach_already(base: Any) -> None:
    made = rewritten(receipt("knowledge-expansive")) | {"attempts": [attempt()]}
    verdict, outcomes = judged(set_path(made, "domains.3.success.base", base))
    assert (verdict, outcomes[TASK]) == ("inconclusive", ("undetermined", None))
    assert [line["result"] for line in lines(made, TASK, "base_success")] == ["undetermined"]


def test_missing_digests_match_no_attempt() -> None:
    made = rewritten(receipt("knowledge-expansive")) | {
        "attempts": [attempt(base_digest=None, lock_digest=None)]
    }
    made["checkpoints"], made["probe"]["lock"] = {}, {}
    assert judged(made)[1][TASK] == ("chart-redefining", None)


def test_a_preserved_atlas_does_not_pass_as_expansive() -> None:
    found = derive_predicates(ReceiptView(receipt("knowledge-expansive")))
    assert found["verdict"] == "inconclusive"
    assert found["predicates"][TASK]["passed"] is None
    assert "declare chart-preserving" in found["predicates"][TASK]["reason"]


def test_an_expansive_stage_still_forbids_damage() -> None:
    made = rewritten(receipt("knowledge-expansive")) | {"attempts": [attempt()]}
    assert judged(made)[0] == "pass"
    assert judged(set_path(made, "domains.0.nll_increase", interval(0.5, 0.6)))[0] == "fail"


def test_an_unknown_stage_never_passes() -> None:
    assert judged(receipt("anything-goes"))[0] != "pass"


def test_an_undetermined_atlas_leaves_the_classification_open() -> None:
    made = set_path(receipt(), "layers.1.pair.content_drift", gated(0.05, 0.2))
    assert judged(made) == (
        "inconclusive",
        {ATLAS: ("undetermined", None), DAMAGE: ("undamaged", True), TASK: ("undetermined", None)},
    )


def test_evidence_is_ordered_worst_first() -> None:
    made = rewritten(receipt())
    made["layers"][2]["pair"]["content_drift"] = gated(0.7, 0.9)
    made["layers"][1]["pair"]["overlap_drop"] = gated(0.05, 0.2)
    results = [
        line["result"] for line in derive_predicates(ReceiptView(made))["predicates"][ATLAS]["evidence"]
    ]
    gates = [line["gate"] for line in derive_predicates(ReceiptView(made))["predicates"][ATLAS]["evidence"]]
    assert gates[:3] == ["content", "boundary", "overlap_drop"]
    assert results[:4] == ["fail", "fail", "undetermined", "pass"]


# --- on the very edge --------------------------------------------------------------------------------------------


def lines(made: dict[str, Any], predicate: str, gate: str) -> list[dict[str, Any]]:
    found = derive_predicates(ReceiptView(made))["predicates"][predicate]["evidence"]
    return [line for line in found if line["gate"] == gate]


@pytest.mark.parametrize(
    ("margin", "result"),
    [
        (interval(0.0, 0.0, exact=True), "undetermined"),  # above 0, not at it
        (interval(0.1, 0.1, exact=True, documents=3), "pass"),
        (interval(0.0, 0.2), "undetermined"),
        (interval(-0.2, 0.0), "undetermined"),
        (interval(-0.2, -0.1), "fail"),
    ],
)
def test_a_refinement_margin_is_held_against_nought(margin: dict[str, Any], result: str) -> None:
    made = set_path(receipt(), "margins.refinement_margin", margin)
    assert [(line["result"], line["budget"]) for line in lines(made, ATLAS, "refinement_margin")] == [
        (result, 0.0)
    ]


def test_byte_identical_inputs_hold_a_budget_of_nought() -> None:
    made = set_path(receipt(), "probe.policy.rewrite.content", 0)
    exact = {"estimate": 0.0, "low": 0.0, "high": 0.0, "documents": 3, "exact": True}
    for number in (1, 2):
        set_path(made, f"layers.{number}.pair.content_drift", exact)
    assert [line["result"] for line in lines(made, ATLAS, "content")] == ["pass", "pass"]


@pytest.mark.parametrize(
    ("exact", "result"), [(True, "pass"), (False, "undetermined"), (None, "undetermined")]
)
def test_the_tail_of_byte_identical_inputs_needs_no_documents(exact: bool | None, result: str) -> None:
    made = receipt()
    made["domains"][0]["nll_increase"] |= {"exact": exact}
    made["domains"][0]["damaged_documents"]["documents"] = 12
    found = {line["domain"]: line["result"] for line in lines(made, DAMAGE, "tail_guard")}
    assert found == {"prose": result, "code": "pass"}


@pytest.mark.parametrize(
    ("rule", "value", "result"),
    [
        ("at_most", interval(1.9, 2.0), "undetermined"),
        ("at_most", interval(1.8, 1.9), "undetermined"),
        ("at_least", interval(1.8, 1.9), "undetermined"),
        ("at_least", interval(1.9, 2.0), "undetermined"),
        ("at_most", interval(1.91, 2.0), "fail"),
        ("at_least", interval(1.8, 1.89), "fail"),
    ],
)
def test_a_bound_on_its_target_decides_nothing(rule: str, value: dict[str, Any], result: str) -> None:
    made = receipt()
    made["domains"][3]["success"] = {"metric": "nll", "relative_to_base": False, rule: 1.9, "value": value}
    assert [line["result"] for line in lines(made, TASK, "task_success")] == [result]


def test_evidence_stands_worst_first_whatever_its_figures_say() -> None:
    order = ("fail", "undetermined", "pass", "not-applicable", "not-gated")
    gates = [
        Gate(result, result, {}, Interval({"estimate": float(n)}), 1.0) for n, result in enumerate(order)
    ]
    for given in itertools.permutations(gates):
        assert [line["result"] for line in worst_first(given)] == list(order)


TASKS = {
    "task-not-reached": interval(2.0, 2.1),
    "reached": interval(1.6, 1.7),
    "undetermined": interval(1.8, 2.0),
}


@pytest.mark.parametrize("stage", ["chart-preserving", "knowledge-expansive"])
@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("change", [lambda made: made, rewritten], ids=["preserved", "rewritten"])
def test_what_each_classification_is_worth_under_each_stage(stage: str, task: str, change: Any) -> None:
    """No credit for a task that was not reached, whatever was rewritten and declared."""
    made = set_path(change(receipt(stage)), "domains.3.success.value", TASKS[task])
    kept = change is not rewritten
    reached = "chart-preserving" if kept else "chart-redefining"
    outcome = reached if task == "reached" else task
    passed = {"task-not-reached": False, "undetermined": None}.get(task, kept or False)
    if task == "reached" and stage == "knowledge-expansive":
        passed = None
    assert judged(made)[1][TASK] == (outcome, passed)
    assert (judged(made)[0] == "pass") == (stage == "chart-preserving" and kept and task == "reached")


# --- nothing was tuned -----------------------------------------------------------------------------------------


def same(made: dict[str, Any], **policy: Any) -> dict[str, Any]:
    made["identity"]["identical_checkpoints"] = True
    made["probe"]["policy"] |= policy
    return made


def without_task(made: dict[str, Any]) -> dict[str, Any]:
    made["domains"].pop()
    made["probe"]["policy"]["task"] = "none"
    return made


@pytest.mark.parametrize("made", [receipt(), without_task(receipt())], ids=["task", "no-task"])
@pytest.mark.parametrize(("allow", "verdict"), [([], "inconclusive"), (["identical"], "pass")])
def test_equal_checkpoints_pass_only_where_the_policy_allows_them(
    made: dict[str, Any], allow: list[str], verdict: str
) -> None:
    found, outcomes = judged(same(made, allow=allow))
    assert (found, outcomes[TASK][0]) == (verdict, "nothing-tuned")
    gates = [line["result"] for line in lines(made, TASK, "nothing_tuned")]
    assert gates == ["pass" if allow else "undetermined"]


@pytest.mark.parametrize("allow", [[], ["identical"]])
def test_equal_checkpoints_that_miss_the_task_miss_it(allow: list[str]) -> None:
    made = set_path(receipt(), "domains.3.success.value", interval(2.4, 2.6))
    verdict, outcomes = judged(same(made, allow=allow))
    assert (verdict, outcomes[TASK]) == ("fail", ("task-not-reached", False))


@pytest.mark.parametrize("allow", [[], ["identical"]])
def test_equal_checkpoints_are_no_knowledge_expansion(allow: list[str]) -> None:
    made = same(receipt("knowledge-expansive"), allow=allow)
    verdict, outcomes = judged(made)
    assert (verdict, outcomes[TASK]) == ("inconclusive", ("nothing-tuned", None))


def test_equal_digests_are_equal_checkpoints_whatever_the_audit_says() -> None:
    made = receipt()
    made["checkpoints"] = {
        side: {"digest": "aa" * 32, "config_sha256": "ff" * 32} for side in ("base", "tuned")
    }
    assert judged(made)[0] == "inconclusive"
    made["checkpoints"]["tuned"]["config_sha256"] = "ee" * 32
    assert judged(made)[0] == "pass"
