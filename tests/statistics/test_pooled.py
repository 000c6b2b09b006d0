"""Ratios pooled over documents against plain loops: what each expert's own interval rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from moe_atlas.statistics.pooled import pooled_ratios
from moe_atlas.statistics.resampled import interval
from tests.statistics import plain
from tests.statistics.test_bootstrap import CONFIDENCE, domains_of, small_design


def ratio(total: Sequence[float], count: Sequence[float]) -> plain.Functional:
    def functional(weights: Sequence[float]) -> float:
        top = math.fsum(w * t for w, t in zip(weights, total, strict=True))
        return top / math.fsum(w * c for w, c in zip(weights, count, strict=True))

    return functional


def test_pooled_ratios_are_the_plain_bootstrap_t_even_where_a_domain_has_none() -> None:
    rng = np.random.default_rng(0)
    design = small_design()
    count_CQ = rng.integers(1, 6, (21, 70)).astype(float)  # more columns than are held at a time
    count_CQ[design.slices[0], 69] = 0.0
    total_CQ = count_CQ * rng.gamma(2.0, 0.1, count_CQ.shape)
    found = pooled_ratios(total_CQ, count_CQ, design)
    for column in (0, 1, 69):
        functional = ratio(total_CQ[:, column].tolist(), count_CQ[:, column].tolist())
        wanted = plain.bootstrap_t(functional, design.weights_BC.tolist(), domains_of(design), CONFIDENCE)
        shown = interval(found[column], CONFIDENCE)
        assert [shown["estimate"], shown["low"], shown["high"]] == pytest.approx(list(wanted), rel=1e-5)
        assert shown["documents"] == int((count_CQ[:, column] > 0).sum())


def test_what_never_changed_is_exactly_nought_and_what_always_changed_alike_has_no_bound() -> None:
    design = small_design()
    count_CQ = np.full((21, 2), 3.0)
    zero, alike = pooled_ratios(count_CQ * np.array([0.0, 1.0]), count_CQ, design)
    assert interval(zero, CONFIDENCE)["exact"] is True
    shown = interval(alike, CONFIDENCE, 0.0, 1.0)
    assert (shown["estimate"], shown["high"]) == (1.0, None)
    assert shown["reason"] == "no variance between documents"
