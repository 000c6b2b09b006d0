"""Rows of embedding and head: which ones moved further than training moves one, and which are another row's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_atlas.weights.comparison import TensorComparison
from moe_atlas.weights.rows import RowChanges, unseen_limit

VOCAB, WIDTH, SEEN = 600, 96, 100


def rows_of(base, tuned, part=VOCAB, special=None):
    comparison = TensorComparison(base.shape)
    seen_V = np.arange(len(base)) < SEEN
    rows = RowChanges(comparison, seen_V)
    for begin in range(0, len(base), part):
        here = range(begin, min(begin + part, len(base)))
        pieces = base[begin : here.stop], tuned[begin : here.stop]
        comparison.add(*pieces)
        rows.add(here, *pieces)
    return rows.facts(special or {})


@pytest.fixture
def base():
    return torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(0))


def noisy(rows, scale, seed=1):
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    return rows + scale * rows.norm(dim=1, keepdim=True) * noise / noise.norm(dim=1, keepdim=True)


def test_changes_are_counted_apart_for_ids_that_the_probe_reads(base):
    tuned = noisy(base, 0.02)
    tuned[300:] = base[300:]
    found = rows_of(base, tuned)
    assert (found["rows"], found["seen"], found["changed"]) == (VOCAB, SEEN, {"seen": 100, "unseen": 200})
    expected = (tuned - base).norm(dim=1) / (tuned.norm(dim=1) + base.norm(dim=1))
    assert found["largest_change"]["seen"] == pytest.approx(float(expected[:SEEN].max()), rel=1e-5)
    assert found["median_change"]["unseen"] == 0.0
    assert found["outlying"] == {"seen": 0, "unseen": 0}


@pytest.mark.parametrize(
    ("usual", "limit"), [([], 0.1), ([0.001], 0.1), ([0.05, 0.05, 0.9], 0.15), ([0.3, 0.3], 1 / 3)]
)
def test_a_row_that_no_window_reads_may_go_as_far_as_the_others_usually_do(usual, limit):
    assert unseen_limit(np.array(usual)) == pytest.approx(limit)


def test_noise_that_would_pass_on_a_row_that_is_read_lies_out_on_one_that_is_not(base):
    tuned = noisy(base, 0.01)
    tuned[SEEN - 20 : SEEN + 20] = noisy(base[SEEN - 20 : SEEN + 20], 0.5)
    assert rows_of(base, tuned)["outlying"] == {"seen": 0, "unseen": 20}


@pytest.mark.parametrize("part", [7, 256, VOCAB])
def test_rows_that_changed_places_are_found_across_parts_and_under_a_tune(base, part):
    tuned = noisy(base, 0.02)
    order = torch.randperm(VOCAB - SEEN, generator=torch.Generator().manual_seed(3))
    tuned[SEEN:] = tuned[SEEN:][order]
    found = rows_of(base, tuned, part)
    moved = int((order != torch.arange(len(order))).sum())
    assert found["permuted"] == found["outlying"]["unseen"] == moved
    for row in found["named"]:
        assert row["was"] == SEEN + int(order[row["id"] - SEEN])


def test_a_copy_of_a_row_that_stays_is_no_permutation(base):
    tuned = base.clone()
    tuned[-8:] = base[3]
    found = rows_of(base, tuned)
    assert (found["permuted"], found["outlying"]["unseen"]) == (0, 8)


@pytest.mark.parametrize(("value", "longer"), [(1e30, 1), (torch.inf, 1), (torch.nan, 1), (0.0, 0)])
def test_a_row_of_any_value_lies_out(base, value, longer):
    tuned = base.clone()
    tuned[-1] = value
    found = rows_of(base, tuned, special={VOCAB - 1: "eos", 2: "bos", 10**6: "beyond"})
    assert (found["outlying"], found["far_longer"]) == ({"seen": 0, "unseen": 1}, longer)
    assert [(row["id"], row["name"]) for row in found["named"]] == [(VOCAB - 1, "eos"), (2, "bos")]


def test_a_lone_checkpoint_has_nothing_to_say(base):
    comparison = TensorComparison(base.shape)
    comparison.add(base, None)
    rows = RowChanges(comparison, np.ones(VOCAB, dtype=bool))
    rows.add(range(VOCAB), base, None)
    assert rows.facts({}) is None


def test_the_same_values_in_another_dtype_are_no_change(base):
    stored = base.to(torch.bfloat16)
    assert rows_of(stored, stored.float())["changed"] == {"seen": 0, "unseen": 0}


def test_rows_that_only_grew_did_not_change_places(base):
    tuned = base.clone()
    tuned[-2:] *= 3
    found = rows_of(base, tuned)
    assert (found["outlying"]["unseen"], found["permuted"], found["far_longer"]) == (2, 0, 0)


def test_a_row_that_is_nought_in_both_kept_its_values(base):
    base[-3:] = 0.0
    assert rows_of(base, base.clone())["outlying"] == {"seen": 0, "unseen": 0}
