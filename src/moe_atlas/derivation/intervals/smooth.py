"""Smooth occupancy and the smooth margins (Eq. 18-30), corrected and as published. They never gate.

Eq. 18-19 as published have a bias of ln n / beta. The corrected form is log-mean-exp, whose error on the optimistic
side is at most ln n / beta.

Shape legend: B resamples, L layers, E experts, C documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_atlas.derivation.intervals.context import F64, Context, Facts
from moe_atlas.derivation.intervals.means import NOT_MEASURED
from moe_atlas.statistics.bootstrap import basic, resampled_means
from moe_atlas.statistics.resampled import Interval, Resampled, undefined

SUFFIXES = ("", "_published")


def soft_minimum(values: F64, beta: float, published: bool) -> F64:
    """Return smin over the last axis (Eq. 18): log-sum-exp if published, log-mean-exp if corrected."""
    lowest = values.min(axis=-1, keepdims=True)
    total = np.exp(-beta * (values - lowest)).sum(axis=-1)
    count = 1.0 if published else float(values.shape[-1])
    return np.asarray(lowest[..., 0] - np.log(total / count) / beta)


def soft_maximum(values: F64, beta: float, published: bool) -> F64:
    """Return smax over the last axis (Eq. 19), the mirror image of `soft_minimum`."""
    return -soft_minimum(-values, beta, published)


def tail(context: Context, prefix: str, beta: float, published: bool) -> tuple[float, F64] | None:
    """Return the soft lower-tail occupancy (Eq. 23-24) on the data and on every resample; None if not measured.

    The smooth share of an expert pools all base-role windows, as its share does.
    """
    rho_WE = context.array(f"{prefix}.rho")
    if rho_WE is None or not np.isfinite(rho_WE).all():
        return None
    design = context.design
    windows_C = design.sums(np.ones((len(rho_WE), 1)))
    rho_CE = design.sums(rho_WE)
    share_BE = (design.weights_BC @ rho_CE) / (design.weights_BC @ windows_C)
    at_data = soft_minimum(rho_CE.sum(axis=0) / windows_C.sum(), beta, published)
    return float(at_data), soft_minimum(share_BE, beta, published)


def smooth_facts(context: Context, prefix: str, beta: float | None) -> dict[str, Any]:
    """Return ``smooth_share`` (points) and ``smooth_tail`` with its published form (intervals) of one checkpoint."""
    rho_WE = context.array(f"{prefix}.rho")
    defined = rho_WE is not None and np.isfinite(rho_WE).all()
    share = [float(value) for value in rho_WE.mean(axis=0)] if defined and rho_WE is not None else None
    out: dict[str, Any] = {"smooth_share": share}
    for suffix in SUFFIXES:
        found = None if beta is None else tail(context, prefix, beta, bool(suffix))
        sample = undefined(NOT_MEASURED if beta is not None else "no occupancy temperature registered")
        if found is not None:
            sample = basic(found[0], found[1], context.design, context.base_windows)
        out[f"smooth_tail{suffix}"] = context.interval(sample, f"smooth_tail{suffix}")
    return out


def smooth_margins(
    context: Context, layers: Sequence[Facts], reference: dict[int, Facts] | None
) -> dict[str, Interval]:
    """Return ``smooth_refinement_margin`` (Eq. 30) and ``smooth_handoff_margin`` (Eq. 26), with published forms."""
    out = {}
    for suffix in SUFFIXES:
        out[f"smooth_refinement_margin{suffix}"] = context.interval(_refinement(context, layers, suffix))
        out[f"smooth_handoff_margin{suffix}"] = context.interval(_handoff(context, layers, suffix, reference))
    return out


def _refinement(context: Context, layers: Sequence[Facts], suffix: str) -> Resampled:
    smooth, refinement = context.rewrite("smooth"), context.rewrite("refinement")
    if not smooth or not refinement or not context.is_pair or not layers:
        return undefined("no pair, no protected layer, or no weights and temperatures registered")
    mu1, mu2, mu3 = refinement["mu"]
    estimates, resamples = [], []
    for layer in layers:
        prefix = f"layers.{layer['layer']}"
        drifts = [context.array(f"{prefix}.pair.smooth_{part}{suffix}") for part in ("boundary", "content")]
        tails = [
            tail(context, f"{prefix}.{side}", smooth["occupancy"], bool(suffix)) for side in ("base", "tuned")
        ]
        if drifts[0] is None or drifts[1] is None or tails[0] is None or tails[1] is None:
            return undefined(NOT_MEASURED)
        at_data, on_resamples = resampled_means(np.stack([drifts[0], drifts[1]], axis=1), context.design)
        estimates.append(mu1 * at_data[0] + mu2 * at_data[1] + mu3 * (1.0 - tails[1][0] / tails[0][0]))
        load_B = mu1 * on_resamples[:, 0] + mu2 * on_resamples[:, 1]
        resamples.append(load_B + mu3 * (1.0 - tails[1][1] / tails[0][1]))
    beta, published = smooth["refinement"], bool(suffix)
    at_data = refinement["tau"] - soft_maximum(np.array(estimates), beta, published)
    margin_B = refinement["tau"] - soft_maximum(np.stack(resamples, axis=1), beta, published)
    return basic(float(at_data), margin_B, context.design, context.base_windows)


def _handoff(
    context: Context, layers: Sequence[Facts], suffix: str, reference: dict[int, Facts] | None
) -> Resampled:
    smooth, handoff = context.rewrite("smooth"), context.rewrite("handoff")
    if not smooth or not handoff or not layers or not (context.is_pair or reference):
        return undefined("no reference, no protected layer, or no weights and temperatures registered")
    lambda1, lambda2 = handoff["lambda"]
    subject = "tuned" if context.is_pair else "base"
    estimates, resamples = [], []
    for layer in layers:
        own = _overlap_and_tail(context, layer, subject, smooth["occupancy"], suffix)
        ref = (
            _overlap_and_tail(context, layer, "base", smooth["occupancy"], suffix)
            if reference is None
            else _recorded(reference.get(layer["layer"]), suffix)
        )
        if own is None or ref is None:
            return undefined(NOT_MEASURED)
        estimates.append(lambda1 * (own[0] - ref[0]) + lambda2 * (own[1] / ref[1] - 1.0))
        resamples.append(lambda1 * (own[2] - ref[2]) + lambda2 * (own[3] / ref[3] - 1.0))
    beta, published = smooth["handoff"], bool(suffix)
    at_data = soft_minimum(np.array(estimates), beta, published)
    margin_B = soft_minimum(np.stack(resamples, axis=1), beta, published)
    return basic(float(at_data), margin_B, context.design, context.base_windows)


Quadruple = tuple[float, float, Any, Any]


def _overlap_and_tail(
    context: Context, layer: Facts, side: str, beta: float, suffix: str
) -> Quadruple | None:
    prefix = f"layers.{layer['layer']}.{side}"
    overlap_W, low = context.array(f"{prefix}.smooth_overlap"), tail(context, prefix, beta, bool(suffix))
    if overlap_W is None or low is None:
        return None
    at_data, on_resamples = resampled_means(overlap_W[:, None], context.design)
    return float(at_data[0]), low[0], on_resamples[:, 0], low[1]


def _recorded(facts: Facts | None, suffix: str) -> Quadruple | None:
    if facts is None:
        return None
    overlap, low = facts.get("smooth_overlap"), facts.get(f"smooth_tail{suffix}")
    if not isinstance(overlap, float) or not isinstance(low, float) or low == 0.0:
        return None
    return overlap, low, overlap, low
