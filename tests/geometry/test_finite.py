"""Broken tokens are found by what is computed, not by what happens to be measured there."""

from __future__ import annotations

import pytest
import torch

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.geometry.finite import broken_routing, broken_rows
from moe_atlas.loading.registry import resolve
from moe_atlas.models.spec import RouterSpec
from moe_atlas.replay.router import route
from scripts.oracle import tiny

NAN, INF = torch.nan, torch.inf
LARGE = torch.finfo(torch.float32).max


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
def test_a_row_is_broken_by_one_value(dtype, wrong):
    rows = torch.ones(5, 33, dtype=dtype)
    rows[3, 7] = wrong
    assert broken_rows(rows).tolist() == [False, False, False, True, False]


def test_opposite_infinities_do_not_cancel_and_large_values_are_finite():
    rows = torch.tensor([[INF, -INF, 1.0], [LARGE, LARGE, LARGE], [LARGE, -LARGE, 0.0], [NAN, 0.0, 0.0]])
    assert broken_rows(rows).tolist() == [True, False, False, True]
    assert broken_rows(torch.empty(0, 4)).tolist() == []


@pytest.fixture(scope="module")
def router(tmp_path_factory) -> RouterSpec:
    """Sigmoid scores, of which whole groups are dropped."""
    spec = resolve(open_checkpoint(tiny.save("deepseek_v3", tmp_path_factory.mktemp("finite"))))
    return next(layer.moe.router for layer in spec.layers if layer.moe)


def test_a_masked_group_is_not_broken(router):
    assert router.score == "sigmoid"
    x_TD = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    routing = route(
        router, torch.randn(router.experts, 16), x_TD, selection_bias_E=torch.zeros(router.experts)
    )
    assert torch.isneginf(routing.scores_TE).any()
    assert not broken_routing(routing).any()


@pytest.mark.parametrize("size", [LARGE, NAN])
def test_a_logit_that_a_sigmoid_hides_is_broken(router, size):
    x_TD = torch.ones(4, 16)
    x_TD[1:3] = 0.0
    weight_ED = torch.zeros(router.experts, 16)
    weight_ED[2] = size
    routing = route(router, weight_ED, x_TD, selection_bias_E=torch.zeros(router.experts))
    if size == LARGE:  # infinite logits, and finite weights all the same
        assert torch.isinf(routing.logits_TE).any()
        assert torch.isfinite(routing.weights_TK).all()
        assert broken_routing(routing).tolist() == [True, False, False, True]
    else:
        assert broken_routing(routing).all()
