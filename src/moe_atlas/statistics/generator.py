"""Random numbers that are the same on every machine and with every version of Python and NumPy.

The generator is counter-based: the value at (seed, stream, counter) is a pure function of these three integers, so a
verifier can draw any part of a stream without the rest. The mixing function is the finaliser of SplitMix64 (Steele, Lea
and Flood, 2014). At a fixed key, the sequence over counters *is* SplitMix64; the known-answer tests check this. The
generator uses only 64-bit integer arithmetic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def mix(state: U64) -> U64:
    """Return the SplitMix64 finaliser of every element: a bijection of 64-bit integers, uint64 in and out."""
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def stream_key(seed: int, stream: int) -> int:
    """Return the 64-bit key of one stream of one seed; both may be any Python integers."""
    pair = np.array([seed & _MASK, stream & _MASK], dtype=np.uint64)
    mixed = mix(mix(pair + _GOLDEN)[:1] + pair[1:] * _GOLDEN)
    return int(mix(mixed)[0])


def draw(key: int, count: int, start: int = 0) -> U64:
    """Return the values at counters ``start .. start + count - 1`` of a stream, uint64 [count]."""
    counters = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    return mix(np.uint64(key & _MASK) + counters * _GOLDEN)


def integers(key: int, bound: int, count: int, start: int = 0) -> NDArray[np.int64]:
    """Return ``count`` integers in ``0 .. bound - 1``, int64 [count].

    The bound scales the high 32 bits, so the bias is below ``bound / 2**32``.

    Raises:
        ValueError: if the bound is not in ``1 .. 2**31``.
    """
    if not 1 <= bound <= 1 << 31:
        raise ValueError(f"bound must be in 1..2**31, found {bound}")
    high = draw(key, count, start) >> np.uint64(32)
    return ((high * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)
