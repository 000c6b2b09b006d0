"""A router that reads z through a gain of its own, and factors of the experts on their weights: parts of the router."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_atlas.geometry.pair import relabelled
from moe_atlas.replay.model import Replay
from scripts.oracle import tiny
from tests.support import pairs

FIRST = "model.layers.0."
GAIN, ROWS, FACTORS = (f"{FIRST}router.{name}" for name in ("scale", "proj.weight", "per_expert_scale"))
EXPERTS = [f"{FIRST}experts.{name}" for name in ("gate_up_proj", "down_proj")]
WIDTH = 32


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("gain")


@pytest.fixture(scope="module")
def base(root):
    """As many experts as dimensions, so that nothing but its role tells a gain from a factor by expert."""
    return tiny.save("gemma4_text", root / "base", seed=3, num_experts=WIDTH)


@pytest.fixture(scope="module")
def probes(root):
    return pairs.probe(root / "probe", documents=6, policy=pairs.SAME)


@pytest.fixture
def judged(base, probes, tmp_path):
    return lambda change: pairs.judge(base, change, probes, tmp_path)


def test_a_gain_of_the_router_is_worth_the_columns_of_its_matrix(judged):
    factor_D = 1 + 0.5 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))

    def by_gain(tensors):
        tensors[GAIN] = tensors[GAIN] * factor_D

    def by_columns(tensors):
        tensors[ROWS] = tensors[ROWS] * factor_D

    receipts = [judged(change) for change in (by_gain, by_columns)]
    first, other = (receipt.body["layers"][0]["pair"] for receipt in receipts)
    assert first["coordinate_drift"]["estimate"] == first["coordinate_drift_z"]["estimate"] == 0
    assert first["boundary_drift"]["estimate"] == other["boundary_drift"]["estimate"] > 0.1
    assert first["flips"] == other["flips"]
    for key in ("transition_drift", "native_boundary_drift", "entropy_drop"):
        assert first[key]["estimate"] == pytest.approx(other[key]["estimate"], rel=1e-4), key
    losses = [[row["nll_tuned"]["estimate"] for row in receipt.body["domains"]] for receipt in receipts]
    assert np.allclose(*losses, rtol=1e-5)
    classes = receipts[0].body["weights"]["classes"]
    assert [name for name, row in classes.items() if row["changed"]] == ["router"]


def swapped(*names):
    order = [1, 0, *range(2, WIDTH)]

    def change(tensors):
        for name in names:
            tensors[name] = tensors[name][order].contiguous()

    return change


def test_experts_that_change_places_with_their_rows_and_factors_are_the_same_model(judged):
    receipt = judged(swapped(ROWS, FACTORS, *EXPERTS))
    assert receipt.verdict == "pass"
    assert receipt.body["identity"]["layers"][0]["assignment"] == "relabelled"
    assert receipt.body["layers"][0]["pair"]["boundary_drift"]["estimate"] == 0


def test_experts_that_leave_their_factors_behind_are_another_model(judged):
    receipt = judged(swapped(ROWS, *EXPERTS))
    assert receipt.verdict == "fail"
    assert receipt.body["domains"][0]["nll_increase"]["estimate"] != 0


def test_the_combine_rule_keeps_the_factors_under_any_numbering(base):
    spec, reader = tiny.open_tiny(base)
    seen = []
    replay = Replay(spec, dtype=torch.float32)
    replay.forward(reader, tiny.tokens(), lambda layer, gate, routing: seen.append((layer, routing)))
    layer, routing = seen[0]
    match_E = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(1))
    for one in (routing, relabelled(routing, match_E)):
        weights_TK = replay.combine(layer, one.logits_TE, one.topk_TK, one.expert_scale_E)
        assert torch.allclose(weights_TK, routing.weights_TK)
    assert not torch.allclose(routing.weights_TK.sum(-1), torch.ones(len(routing.weights_TK)))
