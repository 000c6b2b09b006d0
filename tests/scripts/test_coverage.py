"""A smoke version of `make coverage`: a few cells, and that the simulation can tell a broken gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.coverage import damage, layers, plasmode
from scripts.coverage.draws import SHAPES, TOUCHED, Cell, document_of_windows, increases
from scripts.coverage.page import replace_section


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("unequal", [False, True])
def test_simulated_windows_have_the_planted_mean(shape: str, unequal: bool) -> None:
    cell = Cell(shape, unequal, 200, 0.2)
    rng = np.random.default_rng(3)
    document_W = document_of_windows(cell, rng)
    values_WR = increases(cell, document_W, damage.MARGIN, 400, rng)
    standard_error = np.std(values_WR.mean(axis=0)) / np.sqrt(400)
    assert abs(values_WR.mean() - damage.MARGIN) < 5 * standard_error


def test_windows_of_a_document_are_correlated_as_asked() -> None:
    cell = Cell("normal", False, 100, 0.5)
    rng = np.random.default_rng(4)
    values = increases(cell, document_of_windows(cell, rng), 0.0, 300, rng).reshape(100, 4, 300)
    found = np.corrcoef(values[:, 0].ravel(), values[:, 1].ravel())[0, 1]
    assert found == pytest.approx(0.5, abs=0.02)


def test_touched_documents_carry_everything() -> None:
    cell = Cell("concentrated", False, 200, 0.0)
    rng = np.random.default_rng(5)
    values = increases(cell, document_of_windows(cell, rng), damage.MARGIN, 50, rng)
    assert np.mean(values > 0.1) == pytest.approx(TOUCHED, abs=0.02)


def test_a_normal_cell_covers_and_passes_falsely_no_more_than_stated() -> None:
    rates = damage.simulate(Cell("normal", False, 50, 0.2), reps=500, resamples=399, seed=1)
    assert rates.covered == pytest.approx(0.95, abs=0.03)
    assert rates.false_pass <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 500)
    assert rates.healthy_pass > 0.5


def test_under_thirty_documents_nothing_passes() -> None:
    for shape in SHAPES:
        rates = damage.simulate(Cell(shape, True, 25, 0.5), reps=100, resamples=199, seed=2)
        assert rates.false_pass == rates.healthy_pass == rates.false_fail == 0.0


def test_documents_of_unequal_size_count_as_fewer_and_are_undetermined() -> None:
    rates = damage.simulate(Cell("concentrated", True, 50, 0.2), reps=500, resamples=399, seed=3)
    assert rates.bound_missed > 0.03  # the mean alone is fooled
    assert rates.false_pass == rates.false_pass_loose == rates.healthy_pass == 0.0


def test_the_bound_of_a_pass_holds_where_the_interval_does_not() -> None:
    rates = damage.simulate(Cell("skewed", False, 50, 0.5), reps=1000, resamples=399, seed=3)
    assert rates.bound_missed > 0.025 + 3 * np.sqrt(0.025 * 0.975 / 1000)
    assert rates.false_pass <= 0.025 + 2 * np.sqrt(0.025 * 0.975 / 1000)
    assert rates.healthy_pass > 0.6


def test_simultaneous_bounds_hold_where_pointwise_ones_do_not() -> None:
    family = layers.simulate("normal", 0.5, 50, reps=120, resamples=399, seed=1)
    assert family.simultaneous <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 120)
    assert family.pointwise > 0.2


def test_the_generated_section_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nwritten by hand\n")
    replace_section(page, "coverage", "first")
    page.write_text(page.read_text() + "\n## After\n")
    replace_section(page, "coverage", "second")
    text = page.read_text()
    assert "first" not in text
    assert "second" in text
    assert text.startswith("# Title\n\nwritten by hand\n")
    assert text.rstrip().endswith("## After")


def test_real_documents_are_moved_to_the_margin(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [["a", "pair", *rng.normal(3.0, 0.1, 100).tolist()], ["a", "same", *[0.0] * 100]]
    path = tmp_path / "documents.csv"
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    found = list(plasmode.populations(path))
    assert [one.pair for one in found] == ["a pair, domain 0", "a pair, domain 1"]
    outcome = plasmode.simulate(found, 50, reps=300, resamples=399, seed=1)
    assert outcome.covered == pytest.approx(0.95, abs=0.03)
    assert outcome.bound_missed == pytest.approx(0.025, abs=0.02)
