"""Max-T bounds against a plain rewrite, and what takes no part in them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moe_atlas.statistics.resampled import Resampled, exact_zero, lower_bound, undefined
from moe_atlas.statistics.simultaneous import simultaneous_lower


def layers(count: int = 5, resamples: int = 199) -> list[Resampled]:
    rng = np.random.default_rng(0)
    return [
        Resampled(float(rng.normal()), float(rng.uniform(0.1, 2)), rng.standard_t(5, resamples), 50, 50)
        for _ in range(count)
    ]


def test_bounds_are_the_plain_max_t() -> None:
    made, tail = layers(), 0.025
    largest = [max(sample.t_B[b] for sample in made) for b in range(199)]
    step = sorted(largest)[-math.floor(200 * tail)]
    expected = [sample.estimate - step * sample.se for sample in made]
    assert simultaneous_lower(made, tail) == pytest.approx(expected)


def test_bounds_are_never_above_the_pointwise_ones() -> None:
    made = layers()
    for joint, sample in zip(simultaneous_lower(made, 0.05), made, strict=True):
        assert joint is not None
        assert joint <= lower_bound(sample, 0.05)


def test_undefined_and_exact_layers_take_no_part() -> None:
    made = layers()
    flat = Resampled(0.3, 0.0, np.zeros(199), 50, 50, "no variance between documents")
    agreed = Resampled(0.5, 0.0, np.zeros(199), 50, 50)
    mixed = [made[0], undefined("not measured"), made[1], exact_zero(50, 50), flat, agreed]
    found = simultaneous_lower(mixed, 0.05)
    alone = simultaneous_lower([made[0], made[1]], 0.05)
    assert found == [alone[0], None, alone[1], 0.0, None, 0.5]


def test_nothing_but_agreed_counts_keeps_their_value() -> None:
    agreed = Resampled(0.5, 0.0, np.zeros(199), 50, 50)
    assert simultaneous_lower([agreed, undefined("x")], 0.05) == [0.5, None]


def test_a_resample_that_cannot_be_studentised_counts_against_the_bound() -> None:
    made = layers(2, 19)
    broken = made[0].t_B.copy()
    broken[3] = np.nan
    first = Resampled(made[0].estimate, made[0].se, broken, 50, 50)
    assert simultaneous_lower([first, made[1]], 0.05) == [None, None]


def test_a_family_without_damage_is_rarely_flagged() -> None:
    from moe_atlas.statistics.bootstrap import domain_means
    from moe_atlas.statistics.design import make_design

    flagged = 0
    runs = 200
    for run in range(runs):
        rng = np.random.default_rng(run)
        common = rng.exponential(1.0, (60, 1))
        values = common + rng.exponential(1.0, (60, 48))
        design = make_design(np.zeros(60, dtype=int), np.arange(60), run, 999)
        bounds = simultaneous_lower(domain_means(values, design), 0.05)
        flagged += any(bound is not None and bound > 2.0 for bound in bounds)
    assert flagged / runs < 0.10
