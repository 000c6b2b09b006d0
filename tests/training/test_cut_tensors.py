"""Pieces of a tensor cover it exactly or are refused, and any range of bytes is found in them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_atlas.checkpoint.training.pieces import Piece, fault, runs

ITEM = 2


@st.composite
def cut(draw):
    """A shape, and its pieces: a grid with cuts anywhere in every dimension, in any order."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=4)))
    edges = [sorted({0, extent, *draw(st.lists(st.integers(0, extent), max_size=2))}) for extent in shape]
    spans = [list(itertools.pairwise(edge)) for edge in edges]
    boxes = [tuple(zip(*box, strict=True)) if box else ((), ()) for box in itertools.product(*spans)]
    pieces = [
        Piece("f", 0, tuple(begin), tuple(e - b for b, e in zip(begin, end, strict=True)))
        for begin, end in boxes
    ]
    return shape, draw(st.permutations(pieces))


@given(cut(), st.data())
@settings(max_examples=300, deadline=None)
def test_any_range_of_bytes_is_joined_from_the_pieces(drawn, data):
    shape, pieces = drawn
    assert fault(shape, pieces) is None
    whole = np.arange(int(np.prod(shape)), dtype=np.int16).reshape(shape)
    expected = whole.tobytes()
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    found = bytearray(stop - start)
    written = 0
    for piece in pieces:
        box = tuple(slice(o, o + s) for o, s in zip(piece.offsets, piece.sizes, strict=True))
        stored = np.ascontiguousarray(whole[box]).tobytes()
        for group, indices in runs(shape, piece, ITEM, start, stop):
            for index in indices:
                position = group.position + index * group.stride
                begin, end = max(position, start), min(position + group.length, stop)
                at = group.stored + index * group.length + begin - position
                found[begin - start : end - start] = stored[at : at + end - begin]
                written += end - begin
                assert end > begin
    assert bytes(found) == expected[start:stop]
    assert written == stop - start


@given(cut(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_missing_a_doubled_and_a_moved_piece_are_noticed(drawn, data):
    shape, pieces = drawn
    chosen = data.draw(st.integers(0, len(pieces) - 1))
    piece = pieces[chosen]
    rest = [other for n, other in enumerate(pieces) if n != chosen]
    assert "a piece is missing" in fault(shape, rest)
    assert "overlap" in fault(shape, [*pieces, piece])
    if shape:
        along = data.draw(st.integers(0, len(shape) - 1))
        by = data.draw(st.integers(1, 3))
        moved = tuple(o + by * (d == along) for d, o in enumerate(piece.offsets))
        assert fault(shape, [*rest, Piece("f", 0, moved, piece.sizes)]) is not None


@pytest.mark.parametrize("rows", [64, 128])
def test_a_grid_of_many_pieces_is_checked_in_time(rows):
    shape = (rows * 3, rows * 5)
    pieces = [Piece("f", 0, (3 * i, 5 * j), (3, 5)) for i, j in itertools.product(range(rows), range(rows))]
    assert fault(shape, pieces) is None
