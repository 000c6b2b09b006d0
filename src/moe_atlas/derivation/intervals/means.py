"""Channels that are means over windows; one bootstrap serves all columns of a layer.

Shape legend: Wb base-role windows, Q quantities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from moe_atlas.channels import CHANNEL, CHANNELS
from moe_atlas.derivation.intervals.context import F64, Context, Facts
from moe_atlas.statistics.bootstrap import column_means, domain_means
from moe_atlas.statistics.resampled import Resampled, exact_zero, undefined
from moe_atlas.statistics.stringer import is_rare, stringer_upper
from moe_atlas.window_arrays import BUDGET

PAIR_KEYS = tuple(channel.key for channel in CHANNELS if channel.kind in ("drift", "surrogate"))
FORMAT_KEYS = tuple(channel.key for channel in CHANNELS if channel.kind == "format")
"""Measured only where the two checkpoints store their experts in different formats."""
NOT_MEASURED = "not measured"
REFUTED = "its inputs are said to be equal, yet it is not 0"
# Ceilings of non-negative quantities; `stringer` bounds these without a variance if few documents changed.
SHARES = {channel.key: channel.range[1] for channel in CHANNELS if channel.kind == "drift"}

# The inputs whose equality makes a difference exactly zero, as in the table of channels.
EXACT_NEEDS: dict[str, tuple[str, ...]] = {
    **{channel.key: channel.exact_needs for channel in CHANNELS if channel.exact_needs},
    "actual": ("router", "experts"),
    "router_term": ("router", "experts"),
    "content_term": ("gain", "experts"),
    "bound": ("router", "experts"),
    "raw_norm_drift": ("states",),
    "raw_state_drift": ("states",),
}


def is_exact(context: Context, layer: Facts, key: str) -> bool:
    """Return whether inputs of equal values make this difference exactly zero, whatever the windows."""
    if context.identical:
        return key in EXACT_NEEDS
    exact = layer.get("exact", {})
    needs = EXACT_NEEDS.get(key, ())
    return bool(needs) and all(exact.get(need) is True for need in needs)


def why_not_applicable(layer: Facts, key: str) -> str | None:
    """Return why the architecture leaves a quantity undefined at this layer; None if it is defined."""
    declared: Mapping[str, str] = layer.get("undefined") or {}
    if key in declared:
        return declared[key]
    if key in (*BUDGET, "ratio"):
        return declared.get("perturbation_budget")
    if layer["top_k"] == 1 and key in ("overlap", "overlap_specificity", "smooth_overlap", "overlap_drop"):
        return "one expert per token: no two experts are co-active"
    return declared.get(CHANNEL[key].undefined_with) if key in CHANNEL else None


def layer_means(context: Context, layer: Facts, prefix: str, keys: tuple[str, ...]) -> dict[str, Resampled]:
    """Bootstrap the arrays ``{prefix}.{key}`` of one layer; arrays that were not measured give undefined samples."""
    arrays = {key: context.array(f"{prefix}.{key}") for key in keys}
    return mean_samples(context, layer, arrays)


def mean_samples(context: Context, layer: Facts, arrays: Mapping[str, F64 | None]) -> dict[str, Resampled]:
    """Bootstrap named window columns of one layer; a column that was not measured is None."""
    present = {key: values for key, values in arrays.items() if values is not None}
    samples: dict[str, Resampled] = {}
    if present:
        means = domain_means(np.stack(list(present.values()), axis=1), context.design)
        samples = dict(zip(present, means, strict=True))
    out = {}
    for key, values in arrays.items():
        if values is not None and key in SHARES:
            samples[key] = _with_rare_bound(context, samples[key], values, SHARES[key])
        sample = samples.get(key, undefined(why_not_applicable(layer, key) or NOT_MEASURED))
        if values is not None and is_exact(context, layer, key):
            zero = exact_zero(sample.windows, sample.documents)
            sample = zero if _all_zero(values) else undefined(REFUTED, sample.windows, sample.documents)
        out[key] = sample
    return out


def _with_rare_bound(context: Context, sample: Resampled, values_W: F64, ceiling: float) -> Resampled:
    """Add Stringer's bound to a sample if the quantity is zero in most documents."""
    design = context.design
    defined_W = np.isfinite(values_W)
    if np.isinf(values_W).any():
        return sample
    sums_CQ = design.sums(
        np.stack([np.where(defined_W, values_W, 0.0), defined_W.astype(np.float64)], axis=1)
    )
    if not (sums_CQ[:, 1] > 0).all():
        return sample
    # Domains have equal weights, so a document of a small domain has a larger weight, and a larger ceiling.
    weight_C = np.concatenate([np.full(size, 1.0 / size) for size in design.sizes])
    weight_C *= design.documents / weight_C.sum()
    values_C = weight_C * sums_CQ[:, 0] / sums_CQ[:, 1]
    if not is_rare(values_C):
        return sample
    high = stringer_upper(values_C, ceiling * float(weight_C.max()), context.tail)
    return replace(sample, rare_high=high)


def tail_mean(context: Context, prefix: str) -> Resampled:
    """Return the mean over the tokens of a margin tail, from ``{prefix}.sum`` and ``{prefix}.count``."""
    pair = tail_columns(context, prefix)
    if pair is None:
        return undefined(NOT_MEASURED)
    total_C, count_C = pair
    infinite_Q = np.array([bool(np.isinf(total_C).any())])
    return column_means(total_C[:, None], count_C[:, None], context.design, infinite_Q)[0]


def tail_columns(context: Context, prefix: str) -> tuple[F64, F64] | None:
    """Return sum and count per document over the tokens of a margin tail; None if not measured."""
    total_W, count_W = context.array(f"{prefix}.sum"), context.array(f"{prefix}.count")
    if total_W is None or count_W is None:
        return None
    sums_CQ = context.design.sums(np.stack([total_W, count_W], axis=1))
    return sums_CQ[:, 0], sums_CQ[:, 1]


def window_columns(context: Context, name: str) -> tuple[F64, F64] | None:
    """Return sum and count per document of the defined values of a window array; None if missing or not finite."""
    values_W = context.array(name)
    if values_W is None or np.isinf(values_W).any():
        return None
    defined_W = np.isfinite(values_W)
    stacked = np.stack([np.where(defined_W, values_W, 0.0), defined_W.astype(np.float64)], axis=1)
    sums_CQ = context.design.sums(stacked)
    return sums_CQ[:, 0], sums_CQ[:, 1]


def as_intervals(context: Context, layer: Facts, samples: Mapping[str, Resampled]) -> dict[str, Any]:
    """Return the receipt's intervals of named samples; mark quantities that the architecture leaves undefined."""
    out = {}
    for key, sample in samples.items():
        shown = context.interval(sample, key)
        reason = why_not_applicable(layer, key)
        if reason is not None and shown["estimate"] is None:
            shown |= {"not_applicable": True, "reason": reason}
        out[key] = shown
    return out


def _all_zero(values: F64) -> bool:
    return bool(np.all((values == 0.0) | np.isnan(values)))
