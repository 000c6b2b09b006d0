"""Resampling design and intervals against plain loops, closed forms and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from moe_atlas.statistics import resampled
from moe_atlas.statistics.bootstrap import basic, domain_means, resampled_means, studentised
from moe_atlas.statistics.design import Design, make_design
from moe_atlas.statistics.linearised import Counts, ResampleBatch
from moe_atlas.statistics.resampled import interval, lower_bound, upper_bound
from tests.statistics import plain

CONFIDENCE = 0.9


def small_design(resamples: int = 59, per_document: int = 1, seed: int = 3) -> Design:
    sizes = (9, 12)
    domain = np.repeat([0, 2], [size * per_document for size in sizes])
    document = np.repeat(np.arange(sum(sizes)), per_document)
    return make_design(domain, document, seed, resamples)


def domains_of(design: Design) -> list[list[int]]:
    return [list(range(part.start, part.stop)) for part in design.slices]


def test_weights_keep_the_size_of_every_domain() -> None:
    design = small_design()
    for part in design.slices:
        assert np.all(design.weights_BC[:, part].sum(axis=1) == part.stop - part.start)
    assert np.all(design.weights_BC == np.round(design.weights_BC))


def test_a_domain_is_resampled_the_same_alone_and_among_others() -> None:
    both = small_design()
    alone = make_design(np.full(12, 2), np.arange(12), 3, 59)
    assert np.array_equal(alone.weights_BC, both.weights_BC[:, both.slices[1]])


def test_weights_are_fixed_for_ever() -> None:
    design = make_design(np.zeros(5, dtype=int), np.arange(5), 7, 3)
    # SplitMix64 finaliser over plain integers, scaled to 0..4 and counted.
    assert design.weights_BC.tolist() == plain_weights(seed=7, domain=0, resamples=3, documents=5)


def plain_weights(seed: int, domain: int, resamples: int, documents: int) -> list[list[float]]:
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(state: int) -> int:
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return state ^ (state >> 31)

    key = mix(mix((mix((seed + golden) & mask) + domain * golden) & mask))
    out = []
    for b in range(resamples):
        row = [0.0] * documents
        for i in range(documents):
            value = mix((key + (b * documents + i + 1) * golden) & mask)
            row[((value >> 32) * documents) >> 32] += 1.0
        out.append(row)
    return out


@pytest.mark.parametrize("per_document", [1, 3])
@pytest.mark.parametrize("holes", [False, True])
def test_means_are_the_plain_bootstrap_t(per_document: int, holes: bool) -> None:
    rng = np.random.default_rng(per_document)
    design = small_design(per_document=per_document)
    values = rng.gamma(1.0, 2.0, (21 * per_document, 3)) + 1000.0
    if holes:
        values[rng.random(values.shape) < 0.2] = np.nan
    found = domain_means(values, design)
    for column, sample in enumerate(found):
        total = [float(np.nansum(values[design.document_W == c, column])) for c in range(21)]
        count = [float(np.isfinite(values[design.document_W == c, column]).sum()) for c in range(21)]
        oracle = plain.bootstrap_t(
            plain.domain_mean(total, count, domains_of(design)),
            design.weights_BC.tolist(),
            domains_of(design),
            CONFIDENCE,
        )
        shown = interval(sample, CONFIDENCE)
        assert [shown["estimate"], shown["low"], shown["high"]] == pytest.approx(oracle, rel=1e-6)
        assert shown["windows"] == sum(count)
        assert shown["documents"] == sum(c > 0 for c in count)


def test_the_standard_error_of_a_plain_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, (40, 1))
    design = make_design(np.zeros(40, dtype=int), np.arange(40), 1, 99)
    assert domain_means(values, design)[0].se == pytest.approx(float(stats.sem(values[:, 0])), rel=1e-12)


def test_domains_weigh_the_same_whatever_their_size() -> None:
    design = small_design()
    values = np.where(design.document_W < 9, 1.0, 4.0)[:, None] + np.random.default_rng(0).normal(
        0, 1e-3, (21, 1)
    )
    first, second = values[:9].mean(), values[9:].mean()
    assert domain_means(values, design)[0].estimate == pytest.approx((first + second) / 2, rel=1e-12)


def test_close_to_scipys_percentile_interval_on_normal_data() -> None:
    values = np.random.default_rng(5).normal(0, 1, 400)
    design = make_design(np.zeros(400, dtype=int), np.arange(400), 1, 3999)
    shown = interval(domain_means(values[:, None], design)[0], 0.95)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=3999, method="percentile", random_state=1)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert abs(shown["low"] - theirs.confidence_interval.low) < 0.05 * width
    assert abs(shown["high"] - theirs.confidence_interval.high) < 0.05 * width
    t = stats.t.interval(0.95, 399, loc=values.mean(), scale=stats.sem(values))
    assert [shown["low"], shown["high"]] == pytest.approx(t, abs=0.05 * width)


def test_a_constant_has_no_interval_and_says_so() -> None:
    shown = interval(domain_means(np.full((21, 1), 0.1), small_design())[0], CONFIDENCE)
    assert shown["estimate"] == pytest.approx(0.1)
    assert (shown["low"], shown["high"]) == (None, None)
    assert shown["reason"] == "no variance between documents"


def test_an_infinite_window_leaves_nothing() -> None:
    values = np.random.default_rng(0).normal(0, 1, (21, 1))
    values[4] = np.inf
    shown = interval(domain_means(values, small_design())[0], CONFIDENCE)
    assert [shown[key] for key in ("estimate", "low", "high")] == [None, None, None]
    assert shown["reason"] == "a window is not finite"


def test_a_domain_without_a_value_leaves_nothing() -> None:
    values = np.random.default_rng(0).normal(0, 1, (21, 2))
    values[:9, 0] = np.nan
    values[:, 1] = np.nan
    first, second = (interval(sample, CONFIDENCE) for sample in domain_means(values, small_design()))
    assert first["estimate"] is None
    assert first["reason"] == "undefined in every window of a domain"
    assert second["reason"] == "undefined in every window"


def test_one_document_in_a_domain_bounds_nothing() -> None:
    design = make_design(np.array([0, 1, 1, 1]), np.arange(4), 1, 99)
    shown = interval(domain_means(np.array([[1.0], [2.0], [3.0], [5.0]]), design)[0], CONFIDENCE)
    assert shown["low"] is None
    assert shown["reason"] == "a domain has fewer than two documents"


def test_too_few_resamples_bound_nothing() -> None:
    values = np.random.default_rng(0).normal(0, 1, (21, 1))
    shown = interval(domain_means(values, small_design(resamples=5))[0], 0.95)
    assert (shown["low"], shown["high"]) == (None, None)
    assert shown["reason"] == "the resamples do not bound it"


def test_damage_that_resamples_can_miss_is_not_bounded_from_above() -> None:
    # Three damaged documents of thirty: 4 % of resamples contain none of them and have no variance.
    values = np.zeros((30, 1))
    values[:3] = 1.0
    design = make_design(np.zeros(30, dtype=int), np.arange(30), 1, 3999)
    shown = interval(domain_means(values, design)[0], 0.95)
    assert shown["estimate"] == pytest.approx(0.1)
    assert shown["high"] is None
    assert shown["low"] is not None


@pytest.fixture(scope="module")
def counts() -> tuple[Design, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    design = small_design(resamples=39)
    shares = rng.dirichlet(np.full(6, 20.0))
    base = np.stack([rng.multinomial(2000, rng.dirichlet(shares * 300)) for _ in range(21)])
    tuned = np.stack([rng.multinomial(2000, rng.dirichlet(shares * 200)) for _ in range(21)])
    return design, base.astype(float), tuned.astype(float)


@pytest.mark.parametrize("name", ["load_entropy", "load_cv", "max_violation", "min_share"])
def test_occupancy_functionals_are_the_plain_bootstrap_t(counts: tuple, name: str) -> None:
    design, base, tuned = counts

    def functional(batch: ResampleBatch) -> dict:
        first = Counts(batch, base, base.sum(axis=1) / 2)
        second = Counts(batch, tuned, tuned.sum(axis=1) / 2)
        one, two = getattr(first, name)(), getattr(second, name)()
        return {
            "base": one,
            "difference": one - two,
            "ratio": one / two,
            "exp": one.exp(),
            "sum": 2 * (3.0 - one) / 4,
        }

    found = studentised(functional, design, 21)
    make = {
        "load_entropy": plain.entropy,
        "load_cv": plain.load_cv,
        "max_violation": plain.max_violation,
        "min_share": lambda rows: plain.min_share(rows, 2),
    }[name]
    one, two = make(base.tolist()), make(tuned.tolist())
    oracles = {
        "base": one,
        "difference": lambda w: one(w) - two(w),
        "ratio": lambda w: one(w) / two(w),
        "exp": lambda w: math.exp(one(w)),
        "sum": lambda w: 2 * (3 - one(w)) / 4,
    }
    for key, oracle in oracles.items():
        expected = plain.bootstrap_t(oracle, design.weights_BC.tolist(), domains_of(design), CONFIDENCE)
        shown = interval(found[key], CONFIDENCE)
        assert [shown["estimate"], shown["low"], shown["high"]] == pytest.approx(expected, rel=2e-5), key


def test_batches_do_not_change_a_functional(counts: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    design, base, _ = counts

    def functional(batch: ResampleBatch) -> dict:
        return {"x": Counts(batch, base, base.sum(axis=1)).load_cv()}

    whole = studentised(functional, design, 21)["x"]
    monkeypatch.setattr("moe_atlas.statistics.bootstrap.BATCH_CELLS", 21 * 4)
    pieces = studentised(functional, design, 21)["x"]
    assert pieces.t_B == pytest.approx(whole.t_B, rel=1e-9)


def test_a_domain_mean_agrees_between_both_paths() -> None:
    design = small_design(per_document=2)
    values = np.random.default_rng(2).gamma(2, 1, 42)
    total, count = design.sums(values[:, None])[:, 0], design.sums(np.ones((42, 1)))[:, 0]
    slow = studentised(lambda batch: {"x": batch.domain_mean(total, count)}, design, 42)["x"]
    fast = domain_means(values[:, None], design)[0]
    assert slow.t_B == pytest.approx(fast.t_B, rel=1e-9)
    assert slow.se == pytest.approx(fast.se, rel=1e-12)


def test_dead_experts_are_the_plain_basic_interval() -> None:
    design = small_design(resamples=99)
    rng = np.random.default_rng(4)
    rows = (rng.random((21, 10)) < 0.06) * rng.integers(1, 5, (21, 10))
    dead_B = Counts(ResampleBatch(design, design.weights_BC), rows.astype(float), rows.sum(axis=1)).dead()
    dead = float((rows.sum(axis=0) == 0).sum())

    def functional(weights: list[float]) -> float:
        return float(sum(load == 0 for load in plain.pooled(rows.tolist(), weights)))

    expected = plain.basic(functional, design.weights_BC.tolist(), 21, CONFIDENCE)
    shown = interval(basic(dead, dead_B, design, 21), CONFIDENCE)
    assert [shown["estimate"], shown["low"], shown["high"]] == pytest.approx(expected)


def test_resampled_means_are_plain_means() -> None:
    design = small_design(per_document=2)
    values = np.random.default_rng(2).gamma(2, 1, (42, 2))
    values[5, 0] = np.nan
    estimate, on_resamples = resampled_means(values, design)
    for column in range(2):
        total = [float(np.nansum(values[design.document_W == c, column])) for c in range(21)]
        count = [float(np.isfinite(values[design.document_W == c, column]).sum()) for c in range(21)]
        oracle = plain.domain_mean(total, count, domains_of(design))
        assert estimate[column] == pytest.approx(oracle([1.0] * 21))
        assert on_resamples[:, column] == pytest.approx([oracle(row) for row in design.weights_BC.tolist()])
    broken, _ = resampled_means(np.where(np.isnan(values), np.inf, values), design)
    assert np.isnan(broken[0])
    assert np.isfinite(broken[1])


def test_one_sided_bounds_count_undefined_resamples_against_both_sides() -> None:
    t_B = np.concatenate([np.full(5, np.nan), np.linspace(-2, 2, 95)])
    sample = resampled.Resampled(1.0, 1.0, t_B, 10, 10)
    assert lower_bound(sample, 0.05) == -math.inf
    assert upper_bound(sample, 0.05) == math.inf
    assert lower_bound(sample, 0.10) == pytest.approx(1.0 - np.sort(t_B[5:])[-5])


@pytest.mark.filterwarnings("error")
def test_the_variance_of_a_lone_document_is_undefined_without_a_word() -> None:
    design = make_design(np.array([0]), np.array([0]), 3, 5)
    batch = ResampleBatch(design, design.weights_BC.astype(float))
    assert not np.isfinite(batch.variance(np.zeros((5, 1)))).any()
