"""Rank of W1 and conditioning of the overlap map against NumPy's pseudo-inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_atlas.geometry.chart_maps import overlap_map


def matrix(rows: int, width: int, rank: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, width))).float()


@pytest.mark.parametrize(("rows", "width", "rank"), [(12, 7, 7), (12, 7, 4), (5, 7, 5), (5, 7, 1)])
def test_rank_and_condition(rows: int, width: int, rank: int) -> None:
    source, target = matrix(rows, width, rank, 1), matrix(rows, width, min(rows, width), 2)
    report = overlap_map(source, target)
    assert report["rank"] == rank
    assert report["full_rank"] is (rank == width)
    singular = np.linalg.svd(
        target.double().numpy() @ np.linalg.pinv(source.double().numpy(), rcond=1e-6), compute_uv=False
    )
    singular = singular[singular > 1e-6 * singular[0]]
    assert len(singular) == rank
    assert report["condition"] == pytest.approx(singular[0] / singular[-1], rel=1e-4)


def test_an_expert_maps_onto_itself_perfectly() -> None:
    source = matrix(9, 6, 6, 3)
    assert overlap_map(source, source)["condition"] == pytest.approx(1.0)


def test_a_matrix_of_zeros_has_no_map() -> None:
    report = overlap_map(torch.zeros(4, 3), matrix(4, 3, 3, 1))
    assert report == {"rank": 0, "full_rank": False, "condition": None}
    assert overlap_map(matrix(4, 3, 3, 1), torch.zeros(4, 3))["condition"] is None
