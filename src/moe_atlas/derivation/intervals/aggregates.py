"""Occupancy over many layers: the numbers of a dashboard, over the protected layers and over all routed layers.

Shape legend: B resamples, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moe_atlas.derivation.intervals.context import F64, Context
from moe_atlas.derivation.intervals.layers import LayerResult
from moe_atlas.derivation.intervals.means import NOT_MEASURED
from moe_atlas.statistics.bootstrap import basic
from moe_atlas.statistics.resampled import Interval, Resampled, undefined

Reduction = Callable[[F64], F64]


def _minimum(values: F64) -> F64:
    return np.asarray(values.min(axis=-1))


def _maximum(values: F64) -> F64:
    return np.asarray(values.max(axis=-1))


def _mean(values: F64) -> F64:
    return np.asarray(values.mean(axis=-1))


def derive_aggregates(context: Context, results: Sequence[LayerResult]) -> dict[str, Any]:
    """Return ``{protected, routed: {base, tuned}}``; tuned is null in a baseline."""
    protected = [result for result in results if result.facts["layer"] in context.protected]
    return {
        scope: {
            "base": _side(context, [layer.health["base"] for layer in layers]),
            "tuned": _side(context, [layer.health["tuned"] for layer in layers]) if context.is_pair else None,
        }
        for scope, layers in (("protected", protected), ("routed", list(results)))
    }


def _side(context: Context, layers: list[dict[str, Resampled]]) -> dict[str, Any]:
    def over(key: str, reduce: Reduction, name: str) -> Interval:
        return context.interval(_reduced(context, [layer[key] for layer in layers], reduce), name)

    return {
        "min_entropy": over("load_entropy", _minimum, "min_entropy"),
        "mean_load_cv": over("load_cv", _mean, "mean_load_cv"),
        "dead_experts": {
            "mean": over("dead_experts", _mean, "dead_experts"),
            "max": over("dead_experts", _maximum, "dead_experts"),
        },
        "experts_active_mean": over("active_experts", _mean, "experts_active_mean"),
    }


def _reduced(context: Context, samples: list[Resampled], reduce: Reduction) -> Resampled:
    """Reduce a quantity over layers, on the data and on every resample; its basic interval never gates."""
    columns = [sample.values_B for sample in samples]
    if not columns:
        return undefined("no layer")
    if any(column is None for column in columns):
        return undefined(NOT_MEASURED)
    values_B = reduce(np.stack([column for column in columns if column is not None], axis=-1))
    estimate = float(reduce(np.array([sample.estimate for sample in samples])))
    return basic(estimate, values_B, context.design, context.base_windows)
