"""The promise of `power`: on the documents that it names, the gate passes with the chance that it names."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moe_atlas.statistics.bootstrap import domain_means
from moe_atlas.statistics.design import make_design
from moe_atlas.statistics.passing import passing_bound
from moe_atlas.statistics.power import (
    MOST,
    documents_to_fail,
    documents_to_pass,
    of_all,
    rounded_up,
    smallest_margin,
    spread,
)
from moe_atlas.statistics.resampled import interval

MARGIN = 0.02


def changes(kind: str, rng: np.random.Generator, documents: int, draws: int) -> np.ndarray:
    """Changes of documents with mean 0 and a standard deviation of 0.05 nats, float64 [N, draws]."""
    if kind == "normal":
        return 0.05 * rng.standard_normal((documents, draws))
    raw = rng.gamma(2.0, size=(documents, draws)) - 2.0  # skewness 1.4
    return 0.05 * raw / math.sqrt(2.0)


def samples(values: np.ndarray, resamples: int = 400):
    number = np.arange(len(values))
    return domain_means(values, make_design(np.zeros_like(number), number, 3, resamples))


def measured(sample):
    shown = interval(sample, 0.95) | passing_bound(sample, 0.025)
    return spread(
        shown["estimate"],
        shown["low"],
        shown["high"],
        shown["documents"],
        0.95,
        pass_high=shown["pass_high"],
        effective=shown["effective_documents"],
    )


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_the_named_documents_pass_with_the_named_chance(kind: str) -> None:
    rng = np.random.default_rng(11)
    pilots = [measured(sample) for sample in samples(changes(kind, rng, 100, 40))]
    named = [documents_to_pass(pilot, MARGIN, 36) for pilot in pilots]
    documents = int(np.median([number for number in named if number]))
    bounds = [
        passing_bound(sample, 0.025)["pass_high"] for sample in samples(changes(kind, rng, documents, 600))
    ]
    share = np.mean([bound is not None and bound < MARGIN for bound in bounds])
    assert 0.85 < share < 0.95


def test_the_smallest_margin_and_the_documents_are_one_promise() -> None:
    rng = np.random.default_rng(5)
    (sample,) = samples(changes("normal", rng, 80, 1))
    pilot = measured(sample)
    margin = smallest_margin(pilot, 200)
    assert documents_to_pass(pilot, margin * (1 + 1e-9), 36) == 200
    assert smallest_margin(pilot, 50) == pytest.approx(2 * margin)


def test_a_normal_sample_gives_the_textbook_number() -> None:
    """n = ((z99 + z90) sd / room) ** 2, with z99 the error of a pass and z90 the chance."""
    found = spread(0.0, -1.959964 * 0.005, 1.959964 * 0.005, 100, 0.95)
    assert documents_to_pass(found, 0.02, 36) == math.ceil(((2.326348 + 1.281552) * 0.05 / 0.02) ** 2)
    assert documents_to_fail(found, 0.02, 30) == math.ceil(((1.959964 + 1.281552) * 0.05 / 0.02) ** 2)


def test_nothing_is_promised_that_no_registration_could_hold() -> None:
    found = spread(0.0, -0.01, 0.01, 100, 0.95)
    assert documents_to_pass(found, 0.0, 36) is None
    assert documents_to_pass(found, -0.1, 36) is None
    assert documents_to_pass(found, 1e-6, 36) is None
    assert documents_to_fail(found, 0.0, 30) is None
    assert MOST >= 1 << 19


def test_few_or_unequal_documents_are_not_enough_however_small_the_spread() -> None:
    assert documents_to_pass(spread(0.0, -1e-6, 1e-6, 100, 0.95), 0.02, 36) == 36
    assert documents_to_pass(spread(0.0, -1e-6, 1e-6, 100, 0.95, effective=50.0), 0.02, 36) == 72


@pytest.mark.parametrize(
    ("exact", "shown"), [(7, 7), (36, 36), (100, 100), (101, 110), (41744, 42000), (99999, 100000)]
)
def test_a_forecast_is_shown_with_two_digits_and_never_too_few(exact: int, shown: int) -> None:
    assert rounded_up(exact) == shown


def test_several_gates_need_more_of_each() -> None:
    assert of_all(0.9, 1) == 0.9
    assert of_all(0.9, 3) ** 3 == pytest.approx(0.9)
