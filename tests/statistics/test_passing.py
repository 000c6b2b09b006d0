"""The bound that a pass on a mean rests on, against plain loops; effective documents against their closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from moe_atlas.statistics.bootstrap import domain_means
from moe_atlas.statistics.design import make_design
from moe_atlas.statistics.passing import ERROR_SHARE, effective_documents, passing_bound
from moe_atlas.statistics.resampled import exact_zero, interval
from tests.statistics import plain

TAIL = 0.025


def two_domains(seed: int = 0, resamples: int = 399):
    """Documents of unequal size in two domains, skewed values."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, 24)
    document_W = np.repeat(np.arange(24), sizes)
    design = make_design((document_W >= 10).astype(int), document_W, 5, resamples)
    return design, rng.lognormal(0.0, 1.0, (len(document_W), 2)), sizes


def test_the_bound_is_the_plain_bootstrap_t_at_two_fifths_of_the_error() -> None:
    design, values, _ = two_domains()
    domains = [list(range(10)), list(range(10, 24))]
    for column, sample in enumerate(domain_means(values, design)):
        total = [float(values[design.document_W == c, column].sum()) for c in range(24)]
        count = [float((design.document_W == c).sum()) for c in range(24)]
        mean = plain.domain_mean(total, count, domains)
        confidence = 1.0 - 2.0 * ERROR_SHARE * TAIL
        _, _, high = plain.bootstrap_t(mean, design.weights_BC.tolist(), domains, confidence)
        found = passing_bound(sample, TAIL)
        assert found["pass_high"] == pytest.approx(high, rel=1e-6)
        assert found["pass_high"] > interval(sample, 1.0 - 2.0 * TAIL)["high"]


def test_effective_documents_by_plain_sums() -> None:
    design, values, sizes = two_domains()
    parts = [sizes[:10], sizes[10:]]
    squares = math.fsum((float(n) / part.sum() / 2) ** 2 for part in parts for n in part)
    for sample in domain_means(values, design):
        assert sample.effective == pytest.approx(1.0 / squares, rel=1e-12)


@pytest.mark.parametrize(
    ("counts", "sizes", "expected"),
    [
        ([4.0] * 50, (50,), 50.0),  # equal documents count as what they are
        ([1.0] * 20 + [7.0] * 20, (20, 20), 40.0),  # domains weigh equally, whatever their windows
        ([1.0] * 10 + [1.0] * 40, (10, 40), 32.0),  # ... and whatever their documents: 4 / (1/10 + 1/40)
        ([9.0, 1.0], (2,), 100.0 / 82.0),
        ([0.0, 0.0, 1.0], (2, 1), 0.0),
    ],
)
def test_effective_documents_in_closed_form(counts, sizes, expected) -> None:
    assert effective_documents(np.array(counts), sizes) == pytest.approx(expected, rel=1e-12)


def test_the_bound_is_clipped_to_what_the_quantity_can_be_and_never_below_the_interval() -> None:
    design, values, _ = two_domains()
    sample = domain_means(values, design)[0]
    assert passing_bound(sample, TAIL, ceiling=0.5)["pass_high"] == 0.5
    # Where the stricter level leaves no finite resample, Stringer's bound takes over; it may not undercut.
    t_B = np.where(np.arange(399) < 6, -np.inf, sample.t_B)
    rare = replace(sample, t_B=t_B, rare_high=0.0)
    assert passing_bound(rare, TAIL)["pass_high"] == interval(rare, 1.0 - 2.0 * TAIL)["high"]


def test_what_resamples_do_not_bound_has_no_bound() -> None:
    design, values, _ = two_domains(resamples=80)
    sample = domain_means(values, design)[0]
    assert interval(sample, 0.95)["high"] is not None
    assert passing_bound(sample, TAIL)["pass_high"] is None  # rank 0 of 80 at 1 %


def test_what_is_no_mean_or_is_exact_or_undefined_has_none() -> None:
    design, values, _ = two_domains()
    sample = domain_means(values, design)[0]
    assert passing_bound(replace(sample, effective=None), TAIL) == {}
    assert passing_bound(exact_zero(5, 5), TAIL) == {}
    assert passing_bound(domain_means(np.full_like(values, 0.1), design)[0], TAIL) == {}
