"""Stringer's bound against Clopper-Pearson where they must agree, and against simulation where they need not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from moe_atlas.statistics.stringer import is_rare, stringer_upper

TAIL = 0.025


def clopper_pearson(count, documents):
    return float(beta.ppf(1 - TAIL, count + 1, documents - count))


@pytest.mark.parametrize(("count", "documents"), [(0, 80), (1, 80), (3, 120), (17, 40)])
def test_values_at_the_ceiling_give_clopper_pearson(count, documents):
    values = np.zeros(documents)
    values[:count] = 2.0
    assert stringer_upper(values, 2.0, TAIL) == pytest.approx(
        2.0 * clopper_pearson(count, documents), rel=1e-9
    )


def test_small_values_cost_little_beyond_the_bound_of_no_document_at_all():
    values = np.zeros(80)
    values[:3] = [0.02, 0.01, 0.005]
    steps = np.diff([clopper_pearson(j, 80) for j in range(4)])
    expected = clopper_pearson(0, 80) + steps @ [0.02, 0.01, 0.005]
    assert stringer_upper(values, 1.0, TAIL) == pytest.approx(expected, rel=1e-9)


def test_the_bound_covers_rare_skewed_quantities():
    generator = np.random.default_rng(0)
    touched = generator.random((400, 60)) < 0.05
    values = np.where(touched, generator.beta(0.4, 2.0, (400, 60)), 0.0)
    mean = 0.05 * 0.4 / 2.4
    covered = np.mean([stringer_upper(row, 1.0, TAIL) >= mean for row in values])
    assert covered >= 1 - TAIL - 0.02


def test_only_mostly_zero_data_are_rare():
    assert is_rare(np.array([0.0, 0.0, 0.1]))
    assert not is_rare(np.array([0.0, 0.1, 0.1]))
    assert not is_rare(np.array([0.0, 0.0, -0.1]))
    assert not is_rare(np.array([]))
