"""The rule that sets the demo's budgets, on numbers whose answer is known without it."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.demo import policy


def test_the_prediction_bound_covers_one_more_value():
    """Frequency over many samples of five, against the stated confidence."""
    draws = np.random.default_rng(0).normal(3.0, 0.5, (4000, 6))
    covered = [policy.prediction_bound(row[:5]) >= row[5] for row in draws]
    assert np.mean(covered) == pytest.approx(policy.CONFIDENCE, abs=0.006)


def test_equal_references_give_twice_their_value():
    assert policy.budget([0.02, 0.02, 0.02]).value == 0.04


def test_a_wider_spread_gives_a_larger_budget_and_a_floor_holds():
    assert policy.budget([0.01, 0.02, 0.03]).value > policy.budget([0.019, 0.02, 0.021]).value
    assert policy.budget([0.0, 0.0, 0.0], least=0.047).value == 0.047


@pytest.mark.parametrize(
    ("value", "expected"), [(0.02, 0.02), (0.0201, 0.021), (1.234, 1.3), (0.0, 0.0), (99.5, 100)]
)
def test_rounding_is_upwards_to_two_digits(value, expected):
    assert policy.rounded_up(value) == pytest.approx(expected, rel=1e-12)
