"""Channels that are means over windows: one bootstrap of all columns of a layer at once.

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
from moe_atlas.statistics.sample import Sample, exact_zero, undefined
from moe_atlas.statistics.stringer import is_rare, stringer_upper
from moe_atlas.window_arrays import BUDGET

PAIR_KEYS = tuple(channel.key for channel in CHANNELS if channel.kind in ("drift", "surrogate"))
FORMAT_KEYS = tuple(channel.key for channel in CHANNELS if channel.kind == "format")
"""Measured only where the two checkpoints store their experts in different formats."""
NOT_MEASURED = "not measured"
REFUTED = "its inputs are said to be equal, yet it is not 0"
# Non-negative quantities with a ceiling: where few documents moved they are bounded without a variance.
SHARES = {channel.key: channel.range[1] for channel in CHANNELS if channel.kind == "drift"}

# Which inputs of equal values make a difference exactly zero, in the words of the table of channels.
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
    """Whether inputs of equal values make this difference zero, whatever the sample."""
    if context.identical:
        return key in EXACT_NEEDS
    exact = layer.get("exact", {})
    needs = EXACT_NEEDS.get(key, ())
    return bool(needs) and all(exact.get(need) is True for need in needs)


def why_not_applicable(layer: Facts, key: str) -> str | None:
    """The architecture's reason for leaving a quantity undefined at this layer, None when it is defined."""
    declared: Mapping[str, str] = layer.get("undefined") or {}
    if key in declared:
        return declared[key]
    if key in (*BUDGET, "ratio"):
        return declared.get("perturbation_budget")
    if layer["top_k"] == 1 and key in ("overlap", "overlap_specificity", "smooth_overlap", "overlap_drop"):
        return "one expert per token: no two experts are co-active"
    return declared.get(CHANNEL[key].undefined_with) if key in CHANNEL else None


def layer_means(context: Context, layer: Facts, prefix: str, keys: tuple[str, ...]) -> dict[str, Sample]:
    """Bootstrap the named channels ``{prefix}.{key}`` of one layer; undefined where not measured."""
    arrays = {key: context.array(f"{prefix}.{key}") for key in keys}
    return mean_samples(context, layer, arrays)


def mean_samples(context: Context, layer: Facts, arrays: Mapping[str, F64 | None]) -> dict[str, Sample]:
    """Bootstrap named window columns of one layer, None standing for a column that was not measured."""
    present = {key: values for key, values in arrays.items() if values is not None}
    samples: dict[str, Sample] = {}
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


def _with_rare_bound(context: Context, sample: Sample, values_W: F64, ceiling: float) -> Sample:
    """Stringer's bound beside the bootstrap, where the quantity is zero in most documents."""
    design = context.design
    defined_W = np.isfinite(values_W)
    if np.isinf(values_W).any():
        return sample
    sums_CQ = design.sums(
        np.stack([np.where(defined_W, values_W, 0.0), defined_W.astype(np.float64)], axis=1)
    )
    if not (sums_CQ[:, 1] > 0).all():
        return sample
    # Domains weigh equally: a document of a small domain counts for more, and so can its largest value.
    weight_C = np.concatenate([np.full(size, 1.0 / size) for size in design.sizes])
    weight_C *= design.documents / weight_C.sum()
    values_C = weight_C * sums_CQ[:, 0] / sums_CQ[:, 1]
    if not is_rare(values_C):
        return sample
    high = stringer_upper(values_C, ceiling * float(weight_C.max()), context.tail)
    return replace(sample, rare_high=high)


def tail_mean(context: Context, prefix: str) -> Sample:
    """Mean over the tokens of a margin tail, from ``{prefix}.sum`` and ``{prefix}.count``."""
    pair = tail_columns(context, prefix)
    if pair is None:
        return undefined(NOT_MEASURED)
    total_C, count_C = pair
    infinite_Q = np.array([bool(np.isinf(total_C).any())])
    return column_means(total_C[:, None], count_C[:, None], context.design, infinite_Q)[0]


def tail_columns(context: Context, prefix: str) -> tuple[F64, F64] | None:
    """Per-document sum and count over the tokens of a margin tail, None when not measured."""
    total_W, count_W = context.array(f"{prefix}.sum"), context.array(f"{prefix}.count")
    if total_W is None or count_W is None:
        return None
    sums_CQ = context.design.sums(np.stack([total_W, count_W], axis=1))
    return sums_CQ[:, 0], sums_CQ[:, 1]


def window_columns(context: Context, name: str) -> tuple[F64, F64] | None:
    """Per-document sum and count of a window array's defined values; None when missing or not finite."""
    values_W = context.array(name)
    if values_W is None or np.isinf(values_W).any():
        return None
    defined_W = np.isfinite(values_W)
    stacked = np.stack([np.where(defined_W, values_W, 0.0), defined_W.astype(np.float64)], axis=1)
    sums_CQ = context.design.sums(stacked)
    return sums_CQ[:, 0], sums_CQ[:, 1]


def as_intervals(context: Context, layer: Facts, samples: Mapping[str, Sample]) -> dict[str, Any]:
    """Return the receipt's intervals of named samples, marking what the architecture leaves undefined."""
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
