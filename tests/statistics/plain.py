"""The statistics once more, in plain loops over Python floats: shares no code with the product.

A functional is any function of the list of document weights; its influence is got by finite differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Functional = Callable[[Sequence[float]], float]


def order_statistics(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """The k-th smallest and k-th largest with k = floor((B + 1) alpha / 2)."""
    rank = math.floor((len(values) + 1) * (1 - confidence) / 2 + 1e-9)
    if rank < 1:
        return -math.inf, math.inf
    ordered = sorted(values)
    return ordered[rank - 1], ordered[-rank]


def domain_mean(
    total: Sequence[float], count: Sequence[float], domains: Sequence[Sequence[int]]
) -> Functional:
    """Mean over domains of (sum of totals / sum of counts)."""

    def functional(weights: Sequence[float]) -> float:
        means = []
        for documents in domains:
            top = math.fsum(weights[c] * total[c] for c in documents)
            means.append(top / math.fsum(weights[c] * count[c] for c in documents))
        return math.fsum(means) / len(means)

    return functional


def pooled(counts: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    experts = range(len(counts[0]))
    return [math.fsum(w * row[e] for w, row in zip(weights, counts, strict=True)) for e in experts]


def entropy(counts: Sequence[Sequence[float]]) -> Functional:
    def functional(weights: Sequence[float]) -> float:
        loads = pooled(counts, weights)
        total = math.fsum(loads)
        return -math.fsum(n / total * math.log(n / total) for n in loads if n > 0)

    return functional


def load_cv(counts: Sequence[Sequence[float]]) -> Functional:
    def functional(weights: Sequence[float]) -> float:
        loads = pooled(counts, weights)
        mean = math.fsum(loads) / len(loads)
        return math.sqrt(math.fsum((n - mean) ** 2 for n in loads) / len(loads)) / mean

    return functional


def max_violation(counts: Sequence[Sequence[float]]) -> Functional:
    def functional(weights: Sequence[float]) -> float:
        loads = pooled(counts, weights)
        mean = math.fsum(loads) / len(loads)
        return (max(loads) - mean) / mean

    return functional


def min_share(counts: Sequence[Sequence[float]], top_k: int) -> Functional:
    def functional(weights: Sequence[float]) -> float:
        loads = pooled(counts, weights)
        return (min(loads) + 0.5) / (math.fsum(loads) / top_k + 1)

    return functional


def standard_error(
    functional: Functional, weights: Sequence[float], domains: Sequence[Sequence[int]]
) -> float:
    """Square root of sum over domains n/(n-1) sum w (psi - weighted mean psi)^2, psi by central differences."""
    variance = 0.0
    step = 1e-4
    influence = []
    for c in range(len(weights)):
        up, down = list(weights), list(weights)
        up[c] += step
        down[c] -= step
        influence.append((functional(up) - functional(down)) / (2 * step))
    for documents in domains:
        size = len(documents)
        mean = math.fsum(weights[c] * influence[c] for c in documents) / size
        spread = math.fsum(weights[c] * (influence[c] - mean) ** 2 for c in documents)
        variance += size / (size - 1) * spread
    return math.sqrt(variance)


def bootstrap_t(
    functional: Functional,
    resamples: Sequence[Sequence[float]],
    domains: Sequence[Sequence[int]],
    confidence: float,
) -> tuple[float, float, float]:
    """(estimate, low, high) of the studentised bootstrap."""
    size = sum(len(documents) for documents in domains)
    ones = [1.0] * size
    estimate, error = functional(ones), standard_error(functional, ones, domains)
    studentised = []
    for weights in resamples:
        spread = standard_error(functional, weights, domains)
        shift = functional(weights) - estimate
        studentised.append(shift / spread if spread > 1e-9 else math.copysign(math.inf, shift))
    bottom, top = order_statistics(studentised, confidence)
    return estimate, estimate - top * error, estimate - bottom * error


def basic(
    functional: Functional, resamples: Sequence[Sequence[float]], documents: int, confidence: float
) -> tuple[float, float, float]:
    """(estimate, low, high) of the reflected percentile interval."""
    estimate = functional([1.0] * documents)
    bottom, top = order_statistics([functional(weights) for weights in resamples], confidence)
    return estimate, 2 * estimate - top, 2 * estimate - bottom


def wider_tail(
    functional: Functional, resamples: Sequence[Sequence[float]], documents: int, confidence: float
) -> tuple[float, float, float]:
    """(estimate, low, high), the larger of the two tails of the resamples on both sides."""
    estimate = functional([1.0] * documents)
    bottom, top = order_statistics([functional(weights) for weights in resamples], confidence)
    reach = max(top - estimate, estimate - bottom)
    return estimate, estimate - reach, estimate + reach
