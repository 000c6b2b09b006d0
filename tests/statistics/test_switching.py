"""Minima over experts: bounds when the least used expert is not the same on every resample."""

from __future__ import annotations

import numpy as np
import pytest

from moe_atlas.statistics.bootstrap import studentised, switching
from moe_atlas.statistics.design import make_design
from moe_atlas.statistics.linearised import Counts, ResampleBatch
from moe_atlas.statistics.resampled import Resampled, lower_bound, upper_bound

TAIL = 0.025
DOCUMENTS = 60
TOKENS = 64
# Three experts are nearly the least used. A light tune moves a few of their tokens to the four most used ones.
SHARE = np.array([0.080, 0.082, 0.083, 0.125, 0.145, 0.155, 0.160, 0.170])
KEPT = np.array([0.97, 0.93, 0.98, 1.0, 1.0, 1.0, 1.0, 1.0])
TAKERS = np.array([0.0, 0.0, 0.0, 0.0, 0.25, 0.25, 0.25, 0.25])
CONCENTRATION = 40.0  # of the documents' own shares around the population's


def lost_share(rng: np.random.Generator, seed: int, resamples: int) -> Resampled:
    """1 - minimum share after / before, on documents that each lean to experts of their own."""
    before = rng.multinomial(TOKENS, rng.dirichlet(CONCENTRATION * SHARE, DOCUMENTS)).astype(float)
    stayed = rng.binomial(before.astype(int), KEPT)
    moved = TOKENS - stayed.sum(axis=1)
    after = (stayed + rng.multinomial(moved, TAKERS)).astype(float)
    design = make_design(np.zeros(DOCUMENTS, dtype=int), np.arange(DOCUMENTS), seed, resamples)
    tokens = np.full(DOCUMENTS, float(TOKENS))

    def functional(batch: ResampleBatch):
        return {
            "lost": 1.0 - Counts(batch, after, tokens).min_share() / Counts(batch, before, tokens).min_share()
        }

    return studentised(functional, design, DOCUMENTS)["lost"]


def test_both_bounds_are_as_far_as_the_wider_tail():
    sample = switching(lost_share(np.random.default_rng(3), 3, 399))
    shifts = np.sort(sample.values_B - sample.estimate)
    reach = max(shifts[-10], -shifts[9])  # rank floor(400 * 0.025) from either end
    assert upper_bound(sample, TAIL) == pytest.approx(sample.estimate + reach, rel=1e-12)
    assert lower_bound(sample, TAIL) == pytest.approx(sample.estimate - reach, rel=1e-12)


def test_what_has_no_spread_or_no_resamples_stays_as_it_is():
    flat = Resampled(0.5, 0.0, np.zeros(39), 4, 4, None, values_B=np.full(39, 0.5))
    assert switching(flat) is flat
    mean = Resampled(0.5, 0.1, np.linspace(-2, 2, 39), 4, 4)
    assert switching(mean) is mean


@pytest.mark.slow
def test_the_bounds_cover_and_are_never_absurdly_wide():
    rng = np.random.default_rng(11)
    pairs = [(sample, switching(sample)) for sample in (lost_share(rng, n, 399) for n in range(600))]
    after = SHARE * KEPT + TAKERS * (SHARE * (1 - KEPT)).sum()
    truth = 1.0 - after.min() / SHARE.min()
    missed = np.mean([upper_bound(own, TAIL) < truth for _, own in pairs])
    widest = max(upper_bound(own, TAIL) - own.estimate for _, own in pairs)
    widest_t = max(upper_bound(before, TAIL) - before.estimate for before, _ in pairs)
    assert missed <= TAIL + 3 * np.sqrt(TAIL * (1 - TAIL) / len(pairs))
    assert widest < 0.3 < 3.0 < widest_t
