"""Clopper-Pearson against SciPy."""

from __future__ import annotations

import pytest
from scipy import stats

from moe_atlas.statistics.clopper_pearson import binomial_cdf, clopper_pearson_lower, clopper_pearson_upper


@pytest.mark.parametrize("trials", [1, 5, 30, 99, 400])
@pytest.mark.parametrize("tail", [0.025, 0.05])
def test_bounds_are_scipys_beta_quantiles(trials: int, tail: float) -> None:
    for successes in {0, 1, trials // 10, trials // 2, trials - 1, trials}:
        upper = 1.0 if successes == trials else stats.beta.ppf(1 - tail, successes + 1, trials - successes)
        lower = 0.0 if successes == 0 else stats.beta.ppf(tail, successes, trials - successes + 1)
        assert clopper_pearson_upper(successes, trials, tail) == pytest.approx(upper, rel=1e-9)
        assert clopper_pearson_lower(successes, trials, tail) == pytest.approx(lower, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("p", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_binomial_cdf_is_scipys(p: float) -> None:
    for k in (-1, 0, 3, 29, 30, 31):
        assert binomial_cdf(k, 30, p) == pytest.approx(float(stats.binom.cdf(k, 30, p)), rel=1e-9, abs=1e-14)


def test_no_trials_bound_nothing() -> None:
    assert clopper_pearson_upper(0, 0) == 1.0
    assert clopper_pearson_lower(0, 0) == 0.0


def test_more_hits_than_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="successes"):
        clopper_pearson_upper(3, 2)
