"""How many documents a gate on a mean needs, and the smallest margin that so many documents can pass.

A gate passes where the estimate plus the reach of its bound lies below the margin. Both the reach and the standard
error fall with the root of the number of documents. So with the spread of one sample of n documents and a normal
estimate, a tune whose true change is m passes a margin M on N documents with chance c where

    M - m = (reach + z_c se) sqrt(n / N).

The reach is that of the bootstrap-t bound in that sample, skewness included. docs/statistics.md holds the promise
against a simulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from moe_atlas.statistics.passing import ERROR_SHARE

CHANCE = 0.9
MOST = 1_000_000  # documents; no registration holds more, so that a larger number is no advice


@dataclass(frozen=True)
class Spread:
    """What one sample says of a mean's precision.

    Attributes:
        documents: n, the documents of the sample.
        se: standard error of the mean.
        reach: distance from the estimate up to the bound on which a pass rests.
        fall: distance from the estimate down to the bound on which a failure rests.
        effective: effective documents of the sample; `documents` where all weigh alike.
    """

    documents: int
    se: float
    reach: float
    fall: float
    effective: float


def spread(
    estimate: float,
    low: float,
    high: float,
    documents: int,
    confidence: float,
    *,
    pass_high: float | None = None,
    fail_low: float | None = None,
    effective: float | None = None,
) -> Spread:
    """Return the spread behind an interval.

    Args:
        estimate: the mean.
        low: lower bound of its interval.
        high: upper bound of its interval.
        documents: documents of the sample.
        confidence: two-sided confidence of the interval.
        pass_high: bound on which a pass rests; None stretches `high` as a normal bound of that error would.
        fail_low: bound on which a failure rests, if it is another than `low`.
        effective: effective documents, if they are known.
    """
    tail = (1.0 - confidence) / 2.0
    z = -NormalDist().inv_cdf(tail)
    stretch = -NormalDist().inv_cdf(ERROR_SHARE * tail) / z
    reach = (high - estimate) * stretch if pass_high is None else pass_high - estimate
    return Spread(
        documents=documents,
        se=(high - low) / (2.0 * z),
        reach=reach,
        fall=estimate - (low if fail_low is None else fail_low),
        effective=float(documents) if effective is None else effective,
    )


def of_all(chance: float, gates: int) -> float:
    """Return the chance that each of independent gates needs for all of them to pass with `chance`."""
    return float(chance ** (1.0 / gates))


def smallest_margin(found: Spread, documents: int, chance: float = CHANCE) -> float:
    """Return the margin that a tune without any change passes with `chance` on so many documents."""
    return (found.reach + _z(chance) * found.se) * math.sqrt(found.documents / documents)


def documents_to_pass(found: Spread, room: float, fewest: int, chance: float = CHANCE) -> int | None:
    """Return the documents on which a margin is passed with `chance`.

    Args:
        found: the spread of a sample.
        room: the margin minus the true change.
        fewest: effective documents below which nothing passes.
        chance: the chance.

    Returns:
        The number; None if no number up to `MOST` is enough.
    """
    needed = _documents(found, found.reach, room, chance)
    weight = found.documents / found.effective if found.effective > 0 else math.inf
    return _bounded(max(needed, fewest * weight))


def documents_to_fail(found: Spread, excess: float, fewest: int, chance: float = CHANCE) -> int | None:
    """Return the documents on which a true change of the margin plus `excess` fails with `chance`; None as above."""
    return _bounded(max(_documents(found, found.fall, excess, chance), fewest))


def rounded_up(documents: int) -> int:
    """Return the number with two digits, rounded up: a forecast is no better than that."""
    unit: int = 10 ** max(0, len(str(documents)) - 2)
    return -(-documents // unit) * unit


def _documents(found: Spread, reach: float, room: float, chance: float) -> float:
    if not room > 0:
        return math.inf
    return found.documents * ((reach + _z(chance) * found.se) / room) ** 2


def _bounded(documents: float) -> int | None:
    return math.ceil(documents) if documents <= MOST else None


def _z(chance: float) -> float:
    return NormalDist().inv_cdf(chance)
