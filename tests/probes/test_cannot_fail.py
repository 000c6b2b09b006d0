"""A policy that could not have failed is named, part by part; one that could is left alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_atlas.channels import BUDGETS
from moe_atlas.derivation.derive import derive
from moe_atlas.probes import load_probes
from moe_atlas.probes.settings.cannot_fail import Measured, cannot_fail
from moe_atlas.probes.template import TEMPLATE
from tests.receipt import synthetic

PROBE: dict[str, Any] = {
    "windows": {"tokens": 32, "per_document": 1, "seed": 7},
    "evaluation": {"experts": "active", "token_stride": 1, "quantile": 0.9},
    "protected_layers": "mid-band",
    "domains": synthetic.domains(),
    "policy": synthetic.policy(),
}
CHANNELS = ("coordinate", "boundary", "transition", "content")
ABSOLUTE = ("overlap_drop", "dead_share_rise", "entropy_drop", "load_cv_rise")
# The least that is said to say nothing, and the most that is not.
EDGES = [
    ("policy.rewrite.coordinate", 1.0, 0.99),
    ("policy.rewrite.boundary", 0.5, 0.49),
    ("policy.rewrite.transition", 0.35, 0.34),
    ("policy.rewrite.content", 0.5, 0.49),
    ("policy.rewrite.expert_content", 0.5, 0.49),
    ("policy.rewrite.overlap_drop", 1.0, 0.99),
    ("policy.rewrite.dead_share_rise", 0.5, 0.49),
    ("policy.rewrite.entropy_drop", 6.0, 5.5),
    ("policy.rewrite.load_cv_rise", 128.0, 127.0),
    ("policy.rewrite.refinement.tau", 1.25, 1.24),
    ("policy.damage.nll", 0.7, 0.69),
    ("policy.damage.kl", 0.7, 0.69),
    ("policy.damage.document_nll", 2.8, 2.7),
    ("policy.damage.document_share", 0.5, 0.49),
    ("policy.confidence", 0.89, 0.9),
    ("evaluation.quantile", 0.5, 0.51),
    ("evaluation.token_stride", 32, 31),
    ("protected_layers", [3], ["3-4"]),
    ("domains.2.max_nll_increase", 2.8, 2.7),
    ("domains.3.success.at_most", 13.9, 13.8),
]
ABSURD = [
    ("policy.rewrite.coordinate", 2.0),
    ("policy.rewrite.boundary", 1.0),
    ("policy.rewrite.transition", math.log(2)),
    ("policy.rewrite.content", 1.0),
    ("policy.rewrite.expert_content", 1.0),
    ("policy.rewrite.overlap_drop", 2.0),
    ("policy.rewrite.dead_share_rise", 1.0),
    ("policy.rewrite.entropy_drop", 50.0),
    ("policy.rewrite.load_cv_rise", 1000.0),
    ("policy.rewrite.refinement.tau", 3.0),
    ("policy.rewrite.refinement.mu", [0.001, 0.0, 0.0]),
    ("policy.damage.nll", 1000.0),
    ("policy.damage.kl", 1000.0),
    ("policy.damage.document_nll", 1e9),
    ("policy.damage.document_share", 0.99),
    ("policy.confidence", 0.51),
    ("evaluation.quantile", 0.0001),
    ("evaluation.token_stride", 1 << 20),
    ("domains.2.max_nll_increase", 1000.0),
    ("domains.3.success.at_most", 1000.0),
]


def changed(path: str, value: Any) -> dict[str, Any]:
    probe = copy.deepcopy(PROBE)
    here: Any = probe
    *parents, last = path.split(".")
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here[part]
    here[last] = value
    return probe


def test_a_policy_that_can_fail_is_left_alone() -> None:
    assert cannot_fail(PROBE) == []


@pytest.mark.parametrize(("path", "wide", "narrow"), EDGES)
def test_each_part_is_named_from_where_it_says_nothing(path: str, wide: Any, narrow: Any) -> None:
    assert cannot_fail(changed(path, narrow)) == []
    (line,) = cannot_fail(changed(path, wide))
    named = path.split(".")[-1] if path.startswith("policy") else path.split(".")[0].rstrip("s")
    assert named in line


@pytest.mark.parametrize(("path", "value"), ABSURD)
def test_what_no_checkpoint_could_break_is_named(path: str, value: Any) -> None:
    assert len(cannot_fail(changed(path, value))) == 1


def test_every_budget_is_judged() -> None:
    judged = {path.removeprefix("policy.rewrite.") for path, _, _ in EDGES}
    assert set(BUDGETS) == {*CHANNELS, "expert_content", *ABSOLUTE} <= judged


@pytest.mark.parametrize(
    ("rule", "met"),
    [
        ({"metric": "nll", "at_most": 0.0, "relative_to_base": True}, True),
        ({"metric": "nll", "at_most": 0.2, "relative_to_base": True}, True),
        ({"metric": "nll", "at_most": -0.01, "relative_to_base": True}, False),
        ({"metric": "exact_match", "at_least": 0.0, "relative_to_base": True}, True),
        ({"metric": "exact_match", "at_least": 0.1, "relative_to_base": True}, False),
        ({"metric": "token_accuracy", "at_least": 0.0, "relative_to_base": False}, True),
        ({"metric": "token_accuracy", "at_least": 0.2, "relative_to_base": False}, False),
    ],
)
def test_a_rule_that_no_change_meets_is_named_at_once(rule: Mapping[str, Any], met: bool) -> None:
    assert bool(cannot_fail(changed("domains.3.success", rule))) is met


def test_channels_that_are_all_open_beside_a_gated_budget_are_named() -> None:
    rewrite = PROBE["policy"]["rewrite"] | dict.fromkeys(CHANNELS)
    (line,) = cannot_fail(changed("policy.rewrite", rewrite))
    assert "none of coordinate, boundary, transition, content" in line
    nothing = rewrite | dict.fromkeys(ABSOLUTE) | {"expert_content": 0.35}  # which is there unasked
    assert cannot_fail(changed("policy.rewrite", nothing)) == []  # nothing can pass


def test_too_few_resamples_for_any_bound_are_named() -> None:
    policy = PROBE["policy"] | {"confidence": 0.999, "resamples": 400}
    (line,) = cannot_fail(changed("policy", policy))
    assert "resamples 400 are too few" in line


@pytest.mark.parametrize(
    ("key", "wide", "narrow"), [("entropy_drop", 0.7, 0.69), ("load_cv_rise", 0.87, 0.86)]
)
def test_what_depends_on_the_model_is_judged_by_its_layers(key: str, wide: float, narrow: float) -> None:
    """E = 8, k = 2: entropy falls by at most ln 4, the coefficient of variation rises to at most sqrt(3)."""
    measured = Measured(routed=[1, 2, 3], layers=[(4, 2), (8, 2)], met=[])
    probe = PROBE | {"protected_layers": [1, 2]}
    for value, count in ((wide, 1), (narrow, 0)):
        policy = PROBE["policy"] | {"rewrite": PROBE["policy"]["rewrite"] | {key: value}}
        assert len(cannot_fail(probe | {"policy": policy}, measured)) == count


@pytest.mark.parametrize("experts", [4, 60])
@pytest.mark.parametrize("top_k", [1, 4])
def test_the_ceilings_of_occupancy_are_those_of_loads(experts: int, top_k: int) -> None:
    flat, narrow = np.full(experts, top_k / experts), np.zeros(experts)
    narrow[:top_k] = 1.0

    def entropy(share: Any) -> float:
        share = share / share.sum()
        return float(-(share[share > 0] * np.log(share[share > 0])).sum())

    assert BUDGETS["entropy_drop"].ceiling(experts, top_k) == pytest.approx(entropy(flat) - entropy(narrow))
    assert BUDGETS["load_cv_rise"].ceiling(experts, top_k) == pytest.approx(narrow.std() / narrow.mean())


@pytest.mark.parametrize(("protected", "count"), [([10], 1), (list(range(9)), 1), (list(range(10)), 0)])
def test_fewer_layers_than_mid_band_are_few(protected: list[int], count: int) -> None:
    measured = Measured(routed=list(range(20)), layers=[(8, 2)], met=[])
    assert len(cannot_fail(PROBE | {"protected_layers": protected}, measured)) == count


def test_the_template_is_never_named(tmp_path: Path) -> None:
    (tmp_path / "probes.yaml").write_text(TEMPLATE)
    assert cannot_fail(load_probes(tmp_path / "probes.yaml").describe()) == []


def warned(facts: dict[str, Any], windows: dict[str, Any]) -> list[str]:
    found = derive(facts, windows)["warnings"]
    return [warning["message"] for warning in found if warning["code"] == "cannot-fail"]


@pytest.mark.parametrize(("path", "value"), ABSURD)
def test_a_receipt_says_it_under_its_verdict(path: str, value: Any) -> None:
    facts, windows = synthetic.audit()
    probe = changed(path, value)
    facts["probe"] |= {key: probe[key] for key in ("policy", "domains", "evaluation")}
    found = warned(facts, windows)
    assert found
    passed = derive(facts, windows)["verdict"] == "pass"
    said = (
        "PASS under a policy that could not have failed: " if passed else "a part of the policy cannot fail: "
    )
    assert all(message.startswith(said) for message in found)


def test_a_receipt_says_which_rules_the_base_met() -> None:
    facts, windows = synthetic.audit()
    assert warned(facts, windows) == []
    task = windows["windows.domain"] == 3
    windows["output.nll_base"] = windows["output.nll_base"].copy()
    windows["output.nll_base"][task] -= 2.0
    (message,) = warned(facts, windows)
    assert message.endswith(": domain sft: the base alone meets its success rule")


def test_a_receipt_says_that_few_layers_were_guarded() -> None:
    facts, windows = synthetic.audit(layers=tuple(range(8)))
    facts["probe"]["protected_layers"] = [3]
    (message,) = warned(facts, windows)
    assert "guards 1 of 8 routed layers" in message


def test_a_stage_that_judges_no_atlas_is_one_line_and_no_list_of_channels() -> None:
    probe = changed("policy.stage", "damage-only")
    probe["policy"]["rewrite"] = dict.fromkeys(probe["policy"]["rewrite"])
    probe["protected_layers"] = [3]
    measured = Measured(routed=range(8), layers=[(8, 2)], met=[])
    for known in (None, measured):
        (line,) = cannot_fail(probe, known)
        assert "stage damage-only holds no channel of the atlas against a budget" in line
