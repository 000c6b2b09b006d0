"""Which claims a receipt licenses, row by row of Tables 4, 5 and 11."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from moe_atlas.lifecycle.episodes import GateRecord
from moe_atlas.lifecycle.escalation import escalate
from moe_atlas.verdict.claims import derive_claims, status_of
from moe_atlas.verdict.next_steps import derive_next_steps
from moe_atlas.verdict.predicates import derive_predicates
from moe_atlas.views.receipt import ReceiptView
from tests.verdict.receipts import gated, interval, receipt, rewritten, set_path


def finished(made: dict[str, Any]) -> dict[str, Any]:
    made |= derive_predicates(ReceiptView(made))
    made["claims"] = derive_claims(ReceiptView(made))
    made["next_steps"] = derive_next_steps(ReceiptView(made))
    return made


def statuses(made: dict[str, Any]) -> dict[str, str]:
    return {claim["claim"]: claim["status"] for claim in finished(made)["claims"]}


def improved() -> dict[str, Any]:
    return set_path(receipt(), "domains.3.nll_increase", interval(-0.5, -0.4))


def narrowed(made: dict[str, Any]) -> dict[str, Any]:
    return set_path(made, "layers.1.pair.entropy_drop", gated(0.5, 0.6))


def incompatible(made: dict[str, Any]) -> dict[str, Any]:
    return set_path(made, "layers.2.pair.overlap_drop", gated(0.2, 0.3))


def compatible(made: dict[str, Any]) -> dict[str, Any]:
    for layer in made["layers"]:
        layer["pair"]["overlap_drop"] = gated(-0.3, -0.2)
    return made


SCALAR = "scalar_improvement_without_geometric_recovery"
TABLE_11 = [
    (compatible(improved()), "contradicted", "preserved"),
    (narrowed(compatible(improved())), "contradicted", "rewritten"),
    (incompatible(improved()), "contradicted", "rewritten"),
    (narrowed(incompatible(improved())), "licensed", "rewritten"),
    (narrowed(incompatible(receipt())), "unlicensed", "rewritten"),
]


@pytest.mark.parametrize(("made", "scalar", "atlas"), TABLE_11)
def test_the_rows_of_table_11(made: dict[str, Any], scalar: str, atlas: str) -> None:
    found = statuses(made)
    assert found[SCALAR] == scalar
    assert found["preserved"] == {"preserved": "licensed", "rewritten": "contradicted"}[atlas]


def test_loss_licenses_only_the_objective() -> None:
    found = statuses(set_path(improved(), "layers.1.pair.content_drift", gated(0.05, 0.2)))
    assert found["objective_improved"] == "licensed"
    assert found["preserved"] == "unlicensed"
    assert found["preserved_at_matched_task_success"] == "unlicensed"


@pytest.mark.parametrize(
    ("increase", "status"),
    [
        (interval(-0.2, -0.1), "licensed"),
        (interval(-0.2, 0.0), "unlicensed"),
        (interval(0.1, 0.2), "contradicted"),
        (interval(None, None), "unlicensed"),
        (None, "unlicensed"),
    ],
)
def test_the_objective_claim(increase: Any, status: str) -> None:
    assert statuses(set_path(receipt(), "domains.3.nll_increase", increase))["objective_improved"] == status
    assert statuses(set_path(receipt(), "domains.2.nll_increase", increase))["canary_nll_improved"] == status


def test_claims_of_harm_need_one_layer_and_a_simultaneous_bound() -> None:
    found = statuses(incompatible(receipt()))
    assert found["overlaps_less_compatible"] == "licensed"
    assert found["overlaps_more_compatible"] == "contradicted"
    pointwise = set_path(
        receipt(), "layers.2.pair.overlap_drop", gated(0.2, 0.3) | {"simultaneous_low": -0.1}
    )
    pointwise["layers"][1]["pair"]["overlap_drop"] = gated(-0.1, 0.1)
    assert statuses(pointwise)["overlaps_less_compatible"] == "unlicensed"


def test_claims_of_health_need_every_protected_layer() -> None:
    made = compatible(receipt())
    assert statuses(made)["overlaps_more_compatible"] == "licensed"
    made["layers"][2]["pair"]["overlap_drop"] = gated(-0.1, 0.1)
    assert statuses(made)["overlaps_more_compatible"] == "unlicensed"


def test_usage_narrowing_is_read_against_the_budgets() -> None:
    assert statuses(receipt())["usage_narrowing"] == "contradicted"
    assert statuses(narrowed(receipt()))["usage_narrowing"] == "licensed"
    wide = set_path(receipt(), "layers.1.pair.dead_share_rise", gated(-0.5, 0.5))
    assert statuses(wide)["usage_narrowing"] == "unlicensed"


@pytest.mark.parametrize(
    ("effective", "status"),
    [
        (interval(4.1, 5.0), "licensed"),
        (interval(3.0, 5.0), "unlicensed"),
        (interval(2.0, 3.9), "contradicted"),
    ],
)
def test_broad_usage_is_half_of_the_experts(effective: Any, status: str) -> None:
    assert (
        statuses(set_path(receipt(), "layers.1.tuned.effective_experts", effective))["usage_broad"] == status
    )


def test_sharper_boundaries_license_nothing_else() -> None:
    made = receipt()
    for layer in made["layers"]:
        layer["tuned"]["set_margin"] = interval(1.0, 2.0)
    before, after = statuses(receipt()), statuses(made)
    assert after.pop("boundaries_sharper") == "licensed"
    assert before.pop("boundaries_sharper") == "unlicensed"
    assert after == before


def test_motion_is_claimed_with_its_size() -> None:
    made = set_path(receipt(), "layers.2.pair.content_drift", gated(0.06, 0.08))
    claim = next(claim for claim in finished(made)["claims"] if claim["claim"] == "content_moved")
    assert claim["status"] == "licensed"
    assert (claim["layer"], claim["low"], claim["high"]) == (2, 0.06, 0.08)


def test_motion_is_contradicted_only_by_bytes() -> None:
    made = receipt()
    for layer in made["layers"]:
        layer["pair"]["content_drift"] = interval(0.0, 0.0, exact=True, simultaneous_low=0.0)
    assert statuses(made)["content_moved"] == "contradicted"
    made["layers"][1]["pair"]["content_drift"] = gated(None, None)
    assert statuses(made)["content_moved"] == "unlicensed"


def test_matched_success_needs_a_task() -> None:
    made = receipt()
    made["domains"] = made["domains"][:3]
    made["probe"]["policy"]["task"] = "none"
    found = statuses(made)
    assert found["preserved"] == "licensed"
    assert found["preserved_at_matched_task_success"] == "unlicensed"
    assert statuses(receipt())["preserved_at_matched_task_success"] == "licensed"
    assert statuses(rewritten(receipt()))["preserved_at_matched_task_success"] == "contradicted"


def test_a_baseline_licenses_only_the_state() -> None:
    made = finished(receipt() | {"kind": "baseline"})
    found = {claim["claim"]: claim["status"] for claim in made["claims"]}
    assert found["state_at_this_point"] == "licensed"
    assert found["preserved"] == "unlicensed"
    assert "untested until the next comparison" in made["claims"][-1]["does_not_say"]
    assert status_of(ReceiptView(made).claims, "content_moved") == "unlicensed"
    assert made["next_steps"][0]["first"].startswith("do nothing except")


STEPS = [
    (receipt(), None),
    (narrowed(incompatible(receipt())), "overlap worsens and occupancy degrades"),
    (incompatible(receipt()), "overlap worsens with healthy occupancy"),
    (narrowed(set_path(receipt(), "layers.1.pair.overlap_drop", gated(-0.1, 0.1))), "occupancy narrows"),
    (set_path(receipt(), "weights.classes.router.nonfinite.tuned", 2), "non-finite weights"),
    (set_path(receipt(), "domains.0.nll_increase", interval(0.4, 0.5)), "a base domain is damaged"),
    (set_path(receipt(), "domains.3.success.value", interval(2.4, 2.5)), "the task target was missed"),
    (set_path(receipt(), "domains.0.nll_increase", interval(-0.4, 0.5)), "undetermined: nll_increase"),
]


@pytest.mark.parametrize(("made", "pattern"), STEPS)
def test_the_first_intervention(made: dict[str, Any], pattern: str | None) -> None:
    for layer in made["layers"]:
        if layer["pair"]["overlap_drop"] == gated(0.01, 0.05):
            layer["pair"]["overlap_drop"] = gated(-0.01, 0.05)
    steps = finished(made)["next_steps"]
    if pattern is None:
        assert steps == []
    else:
        assert steps[0]["pattern"] == pattern


MATCHED = "preserved_at_matched_task_success"


@pytest.mark.parametrize(
    ("base", "status"),
    [
        (interval(2.4, 2.6), "licensed"),
        (interval(1.8, 2.0), "unlicensed"),  # the base may meet the target
        (interval(1.7, 1.8), "unlicensed"),  # it does
        (interval(None, None), "unlicensed"),
        (None, "unlicensed"),
    ],
)
def test_success_that_the_base_has_already_is_no_matched_success(base: Any, status: str) -> None:
    made = set_path(receipt(), "domains.3.success.base", base)
    assert statuses(made)[MATCHED] == status
    assert made["verdict"] == "pass"


def test_success_relative_to_a_base_needs_a_gain() -> None:
    for limit, status in ((-0.3, "licensed"), (0.3, "unlicensed")):
        made = set_path(receipt(), "domains.3.success.at_most", limit)
        made["domains"][3]["success"] |= {
            "relative_to_base": True,
            "value": interval(-0.5, -0.4),
            "base": interval(0.0, 0.0, exact=True),
        }
        assert statuses(made)[MATCHED] == status


def test_one_task_that_the_base_misses_is_enough_to_have_been_learnt() -> None:
    made = receipt()
    made["domains"].append(copy.deepcopy(made["domains"][3]) | {"name": "second"})
    set_path(made, "domains.3.success.base", interval(1.7, 1.8))
    assert statuses(made)[MATCHED] == "licensed"


@pytest.mark.parametrize("allow", [[], ["identical"]])
def test_nothing_tuned_licenses_no_matched_success(allow: list[str]) -> None:
    made = receipt()
    made["identity"]["identical_checkpoints"] = True
    made["probe"]["policy"]["allow"] = allow
    assert statuses(made)[MATCHED] == "unlicensed"


STAGES = ("chart-preserving", "knowledge-expansive")


def within(made: dict[str, Any]) -> dict[str, Any]:
    """Overlap worse and usage narrower for certain, by less than a budget allows: claims, and no failed gate."""
    set_path(made, "layers.1.pair.overlap_drop", gated(0.03, 0.05))
    return set_path(made, "layers.1.pair.entropy_drop", gated(0.03, 0.05))


def test_a_pass_ends_in_no_advice_whatever_its_claims_say() -> None:
    made = within(receipt())
    made["probe"]["policy"]["rewrite"]["entropy_drop"] = None
    made = finished(made)
    assert made["verdict"] == "pass"
    assert status_of(ReceiptView(made).claims, "overlaps_less_compatible") == "licensed"
    assert status_of(ReceiptView(made).claims, "usage_narrowing") == "licensed"
    assert made["next_steps"] == []


def test_damage_alone_carries_no_advice_about_overlap_and_occupancy() -> None:
    for made in (within(receipt()), compatible(receipt())):
        made = finished(set_path(made, "domains.0.nll_increase", interval(0.4, 0.5)))
        assert made["verdict"] == "fail"
        assert [step["pattern"] for step in made["next_steps"]] == ["a base domain is damaged"]


def test_a_declared_rewrite_is_no_failure_and_gets_no_advice() -> None:
    """What the stage lets move is no reason; the task that was missed is."""
    made = rewritten(narrowed(incompatible(receipt("knowledge-expansive"))))
    made = finished(set_path(made, "domains.3.success.value", interval(2.4, 2.5)))
    assert made["verdict"] == "fail"
    assert [step["pattern"] for step in made["next_steps"]] == ["the task target was missed"]


def test_attempts_are_asked_for_where_they_can_change_the_verdict() -> None:
    asked = {stage: finished(rewritten(receipt(stage)))["next_steps"] for stage in STAGES}
    patterns = {stage: [step["pattern"] for step in steps] for stage, steps in asked.items()}
    assert patterns["knowledge-expansive"] == ["the task was reached by rewriting"]
    assert patterns["chart-preserving"] == ["protected layers moved beyond budget"]


def test_an_atlas_that_nothing_was_held_against_says_so() -> None:
    made = receipt()
    made["probe"]["policy"]["rewrite"] = dict.fromkeys(made["probe"]["policy"]["rewrite"])
    found = finished(made)["predicates"]["protected_atlas_rewrite"]
    assert (found["outcome"], found["passed"]) == ("undetermined", None)
    assert found["reason"].endswith("nothing was judged")
    assert "reason" not in finished(receipt())["predicates"]["protected_atlas_rewrite"]


def test_history_and_receipt_give_one_advice() -> None:
    """Table 14 once: the same object and the same first move, whoever asks."""
    steps = finished(narrowed(incompatible(receipt())))["next_steps"][0]
    gate = GateRecord(
        "audit", verdict="fail", overlap_worse=True, pathology=("entropy",), failed=("overlap_drop",)
    )
    (reading,) = escalate([gate])
    assert (reading.pattern, reading.intervention) == (steps["object"], steps["first"])


def test_worse_overlap_says_it_for_the_drift_beside_it() -> None:
    steps = finished(rewritten(incompatible(receipt())))["next_steps"]
    assert [step["pattern"] for step in steps] == ["overlap worsens with healthy occupancy"]
