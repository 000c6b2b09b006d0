"""The generator against published SplitMix64 values and against a plain-integer rewrite."""

from __future__ import annotations

import numpy as np
import pytest

from moe_atlas.statistics.generator import draw, integers, mix, stream_key

MASK = (1 << 64) - 1


def plain_mix(state: int) -> int:
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_known_answers_of_splitmix64() -> None:
    # First outputs of SplitMix64 seeded with 1234567 (Rosetta Code, "Pseudo-random numbers/Splitmix64").
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert draw(1234567, 5).tolist() == expected


def test_any_part_of_a_stream_can_be_drawn_alone() -> None:
    whole = draw(99, 1000)
    assert np.array_equal(whole[300:310], draw(99, 10, start=300))


@pytest.mark.parametrize("state", [0, 1, 2**63, MASK, 0x0123456789ABCDEF])
def test_mix_is_the_plain_integer_mix(state: int) -> None:
    assert int(mix(np.array([state], dtype=np.uint64))[0]) == plain_mix(state)


def test_keys_are_fixed_for_ever() -> None:
    golden = 0x9E3779B97F4A7C15

    def plain_key(seed: int, stream: int) -> int:
        first = plain_mix((seed + golden) & MASK)
        return plain_mix(plain_mix((first + stream * golden) & MASK))

    for seed, stream in ((0, 0), (7, 1), (-1, 3), (2**70 + 5, 2)):
        assert stream_key(seed, stream) == plain_key(seed & MASK, stream & MASK)
    assert len({stream_key(seed, stream) for seed in range(20) for stream in range(20)}) == 400


def test_integers_scale_the_high_bits() -> None:
    key = stream_key(7, 2)
    raw = draw(key, 100).tolist()
    assert integers(key, 37, 100).tolist() == [((value >> 32) * 37) >> 32 for value in raw]


def test_integers_are_even() -> None:
    counts = np.bincount(integers(stream_key(0, 0), 10, 100_000), minlength=10)
    assert counts.min() > 9_600  # 10,000 expected, standard deviation 95
    assert counts.max() < 10_400


@pytest.mark.parametrize("bound", [0, -1, (1 << 31) + 1])
def test_bounds_out_of_range_are_refused(bound: int) -> None:
    with pytest.raises(ValueError, match="bound"):
        integers(0, bound, 1)
