"""Counts of rows that experts are multiplied with: few, so that a product once prepared serves many experts."""

from moe_atlas.cli import PREPARED
from moe_atlas.replay.model import MIN_ROWS, Replay

SHAPES = 2  # of an expert's matrices: that of gate and up projection, that of the down projection


def test_no_more_than_one_row_in_eight_is_filled_in():
    for rows in range(1, 5000):
        assert 0 <= Replay.padded_rows(rows) - rows < max(MIN_ROWS, rows / 8 + 1)


def test_what_was_filled_up_is_not_filled_up_again():
    assert all(
        Replay.padded_rows(Replay.padded_rows(rows)) == Replay.padded_rows(rows) for rows in range(1, 5000)
    )


def test_experts_whose_tokens_differ_eightfold_share_products_that_are_kept():
    for fewest in (16, 100, 512, 2000):
        counts = {Replay.padded_rows(rows) for rows in range(fewest, 8 * fewest)}
        assert SHAPES * len(counts) <= PREPARED
