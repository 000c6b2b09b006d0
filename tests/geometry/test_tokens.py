"""What one token's value may be: undefined and broken are told apart, everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_atlas.geometry import drift
from moe_atlas.geometry.assumptions import gain_anisotropy, radial_mean
from moe_atlas.geometry.fields.evaluation import (
    EMPTY,
    append_all,
    append_missing,
    renumbered,
    specificity_partner,
)
from moe_atlas.geometry.fields.tangent import TangentMap, relative_change
from moe_atlas.geometry.fields.undefined_values import mark_undefined, window_means
from moe_atlas.geometry.occupancy import cells, window_counts, window_mean_probs
from moe_atlas.geometry.pair import controls

NAN, INF = math.nan, math.inf


def rows(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_settle_tells_undefined_from_broken() -> None:
    defined = torch.tensor([True, True, True, False, False])
    assert mark_undefined(rows(1.0, NAN, -INF, 2.0, NAN), defined).tolist()[:3] == [1.0, INF, INF]
    assert mark_undefined(rows(1.0, NAN, -INF, 2.0, NAN), defined)[3:].isnan().all()
    assert mark_undefined(rows(0.5, NAN)).tolist() == [0.5, INF]
    assert mark_undefined(torch.tensor([0.1])).dtype == torch.float64


def test_window_means_leave_out_what_is_undefined_and_keep_what_broke() -> None:
    means = window_means(torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN], [1.0, INF, NAN]]))
    assert means[0] == 2.0
    assert means[1].isnan()
    assert means[2] == INF


def test_coordinate_drift_of_directions() -> None:
    base = rows([3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [1.0, 1.0])
    tuned = rows([5.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 0.0])
    assert drift.coordinate_drift(base, tuned).tolist() == pytest.approx([0.0, 1.0, 2.0, 1 - 0.5**0.5])
    assert drift.coordinate_drift(base, base.clone()).tolist() == [0.0] * 4


def test_boundary_drift_counts_members_in_any_order() -> None:
    base, tuned = torch.tensor([[0, 1, 2]] * 3), torch.tensor([[2, 0, 1], [1, 5, 0], [3, 4, 5]])
    assert drift.boundary_drift(base, tuned).tolist() == pytest.approx([0.0, 1 / 3, 1.0])


def test_transition_drift_of_disjoint_and_equal_distributions() -> None:
    p, q = rows([1.0, 0.0], [0.5, 0.5], [1.0, 0.0]), rows([0.0, 1.0], [0.5, 0.5], [0.5, 0.5])
    mixed = 0.5 * math.log(1 / 0.75) + 0.25 * math.log(0.5 / 0.75) + 0.25 * math.log(0.5 / 0.25)
    assert drift.transition_drift(p, q).tolist() == pytest.approx([math.log(2), 0.0, mixed])
    assert drift.transition_drift(rows([NAN, 1.0]), rows([0.5, 0.5])).isnan().all()


def test_content_drift_is_a_quantile_over_the_members_and_a_broken_one_is_infinite() -> None:
    ratio = rows([0.0, 0.1, 0.2, 9.0], [0.0, NAN, 0.2, 9.0], [0.3, NAN, NAN, NAN])
    member = torch.tensor([[True, True, True, False], [True, True, True, False], [True, False, False, False]])
    found = drift.content_drift(ratio, member, 0.75)
    assert found[0] == pytest.approx(0.15)
    assert found[1] == INF
    assert found[2] == pytest.approx(0.3)
    assert drift.content_drift(ratio[1:2], member[1:2], 0.0).tolist() == [INF]


def test_flips_are_inside_the_band_up_to_twice_its_width() -> None:
    changed = torch.tensor([True, True, True, True, False, True])
    margin = rows(0.1, 0.2, 0.3, NAN, 0.1, 0.3)
    inside, outside = drift.flips(changed, margin, None, 0.1, 0.0)
    assert inside.tolist() == [True, True, False, False, False, False]
    assert outside.tolist() == [False, False, True, True, False, True]
    group = rows(9.0, 9.0, 9.0, 0.5, 0.5, 0.4)
    inside, outside = drift.flips(changed, margin, group, 0.1, 0.2)
    assert inside.tolist() == [True, True, False, False, False, True]
    assert outside.tolist() == [False, False, True, True, False, False]


def test_the_tangent_map_removes_the_state_and_for_a_layer_norm_the_mean() -> None:
    z = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    u = torch.tensor([[2.0, 0.0, 1.0, 1.0]])
    assert TangentMap(z)(u).tolist() == [[2.0, 0.0, 1.0, 1.0]]
    assert TangentMap(z, removes_mean=True)(u).tolist() == [[1.0, -1.0, 0.0, 0.0]]
    assert TangentMap(z)(z).tolist() == [[0.0] * 4]
    assert TangentMap(None)(u).tolist() == u.tolist()
    both = TangentMap(torch.cat([z, z.flip(1)]))(torch.stack([u, u])[:, 0], torch.tensor([1, 0]))
    assert both.shape == (2, 4)


def test_relative_change_and_its_parts() -> None:
    ratio, before, after, change = relative_change(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
    assert [ratio.item(), before.item(), after.item(), change.item()] == pytest.approx([1.0, 5.0, 0.0, 5.0])
    nothing = relative_change(torch.zeros(1, 2), torch.zeros(1, 2))[0]
    assert nothing.item() == 0.0


def test_evaluation_tables() -> None:
    table = torch.tensor([[0, 3], [2, EMPTY]])
    assert append_missing(table, torch.tensor([[3, 1], [2, 0]])).tolist() == [
        [0, 3, EMPTY, 1],
        [2, EMPTY, EMPTY, 0],
    ]
    assert append_all(table, 4).tolist() == [[0, 3, EMPTY, 1, 2, EMPTY], [2, EMPTY, 0, 1, EMPTY, 3]]
    assert renumbered(table, torch.tensor([3, 2, 1, 0])).tolist() == [[3, 0], [1, EMPTY]]


def test_specificity_partners_are_uniform_and_never_excluded() -> None:
    excluded = torch.tensor([[4, 1, 6]]).expand(7000, 3)
    windows = np.arange(7000) // 70
    drawn = specificity_partner(3, windows, np.arange(7000) % 70, 5, excluded, 8)
    counts = torch.bincount(drawn, minlength=8)
    assert counts[[4, 1, 6]].tolist() == [0, 0, 0]
    assert (counts[[0, 2, 3, 5, 7]] - 1400).abs().max() < 5 * (7000 * 0.2 * 0.8) ** 0.5
    other = specificity_partner(3, windows, np.arange(7000) % 70, 6, excluded, 8)
    assert not torch.equal(drawn, other)
    everyone = specificity_partner(3, windows[:1], np.arange(1), 5, torch.arange(4)[None], 4)
    assert everyone.tolist() == [EMPTY]
    only = specificity_partner(3, windows[:9], np.arange(9), 5, torch.tensor([[0, EMPTY, 2]] * 9), 3)
    assert only.tolist() == [1] * 9


def test_occupancy_of_windows() -> None:
    topk = torch.tensor([[0, 2], [2, 1], [2, 0], [0, 2]])
    assert window_counts(topk, 2, 4).tolist() == [[1, 1, 2, 0], [2, 0, 2, 0]]
    probs = torch.tensor([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0], [0.0, 1.0]])
    assert window_mean_probs(probs, 2).tolist() == [pytest.approx([0.3, 0.7]), pytest.approx([0.5, 0.5])]
    count, entropy = cells(topk.numpy())
    assert count == 2
    assert entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_gains_that_have_no_anisotropy() -> None:
    assert gain_anisotropy(torch.tensor([-0.5, 2.0, 1.0])) == 4.0
    for broken in (None, torch.tensor([1.0, 0.0]), torch.tensor([1.0, NAN])):
        found = gain_anisotropy(broken)
        assert isinstance(found, dict)
        assert found["value"] is None
        assert found["reason"]


def test_the_mean_of_radial_ratios() -> None:
    assert radial_mean(np.array([1.0, 3.0])) == 2.0
    for broken in (None, np.array([1.0, np.inf])):
        found = radial_mean(broken)
        assert isinstance(found, dict)
        assert found["value"] is None


def test_controls_are_relative_to_the_base_however_small_its_state() -> None:
    base, tuned = rows([0.03, 0.04], [0.0, 0.0], [3.0, 4.0]), rows([0.04, 0.03], [1.0, 0.0], [6.0, 8.0])
    found = controls(base, tuned)
    assert found["raw_norm_drift"][[0, 2]].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)
    assert found["raw_state_drift"][[0, 2]].tolist() == pytest.approx([0.2 * 2**0.5, 1.0])
    assert all(values[1].isnan() for values in found.values())
