"""Perplexity's rate of decline between gates: learning slows it down, memorising does not."""

from __future__ import annotations

import math
from collections.abc import Sequence

GRADUAL = "gradual"
CONSTANT = "constant-or-accelerating"
STEADY = 0.9
"""A rate of at least this share of the rate before has not slowed down."""
SLOW = 0.01
"""A decline below one per cent per 100 steps is gradual, whatever its trend."""


def decline_per_100_steps(
    nll_before: float | None, nll: float | None, step_before: int | None, step: int | None
) -> float | None:
    """Return (PPL before / PPL now)^(100 / steps) - 1; 0.86 is a decline of 86 % per 100 steps; None if undefined."""
    if nll_before is None or nll is None or step_before is None or step is None or step <= step_before:
        return None
    exponent = (nll_before - nll) * 100 / (step - step_before)
    return math.expm1(exponent) if math.isfinite(exponent) and exponent < 700 else None


def decline_trend(rates: Sequence[float]) -> str | None:
    """Return ``gradual`` if the decline slows down or is slow, else ``constant-or-accelerating``.

    A steady or growing rate of decline is the early sign of memorising. The result is None for fewer than two rates.
    """
    if len(rates) < 2:
        return None
    before, now = rates[-2], rates[-1]
    return GRADUAL if now < max(STEADY * before, SLOW) else CONSTANT
