"""What is said of a gate's cost follows from what was measured."""

from __future__ import annotations

import pytest
from scipy import stats

from scripts.gate_cost import BAR, Run, interval, least, section


def test_the_interval_is_students():
    values = [3.0, 5.0, 4.0, 8.0]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((5.0, expected.low, expected.high))


def test_the_cadence_named_is_the_first_that_keeps_under_the_bar():
    s, g, t = 0.002, 26.0, 0.4
    found = least(s, g, t)
    assert (s + g) / (found * t) <= BAR < (s + g) / ((found - 1) * t)


def test_the_page_holds_the_figures_of_a_step_and_of_a_gate():
    plain = [Run(total=10.2 + tenth, saving=0.2) for tenth in (0.0, 0.1, 0.2)]
    gated = [Run(total=10.3 + tenth, saving=0.2, gating=0.004, gates=40.0) for tenth in (0.0, 0.1, 0.2)]
    text = section(list(zip(plain, gated, strict=True)), steps=50, cadence=25)
    assert "| one training step, *t* | 0.202 |" in text
    assert "*g* | 20 | 20 to 20 |" in text
    assert f"under 3% from {least(0.002, 20.0, 0.202)} steps" in " ".join(text.split())
