"""The lifecycle margins over the protected layers (Eq. 31-32), exact and as published.

refinement = tau - max of the loads, handoff = - max of the deficits; each max runs over layers and branches. The lower
end of the interval is tau - the largest upper bound. The true maximum belongs to one branch, and the bound of that
branch holds, so the number of layers needs no correction (intersection-union). The upper end is tau - the largest
*simultaneous* lower bound, because the bound of any layer could be the wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_atlas.derivation.intervals.context import Context, Facts
from moe_atlas.derivation.intervals.layers import LayerResult
from moe_atlas.derivation.intervals.margin_loads import HANDOFF, REFINEMENT
from moe_atlas.derivation.intervals.means import NOT_MEASURED, is_exact, why_not_applicable
from moe_atlas.derivation.intervals.occupancy import DROPS
from moe_atlas.derivation.intervals.smooth import smooth_margins
from moe_atlas.statistics.resampled import NO_VARIANCE, Interval, Resampled, exact_zero, finite, upper_bound
from moe_atlas.statistics.simultaneous import simultaneous_lower


def derive_margins(
    context: Context, results: Sequence[LayerResult], reference: dict[int, Facts] | None
) -> dict[str, Any]:
    """Return every margin of the receipt; a margin that does not exist is null and has a reason."""
    protected = [result for result in results if result.facts["layer"] in context.protected]
    refinement, handoff = context.rewrite("refinement"), context.rewrite("handoff")
    tau = None if refinement is None else float(refinement["tau"])
    out: dict[str, Any] = {}
    for suffix, keep in (("", slice(0, 2)), ("_published", slice(1, 2))):
        out[f"refinement_margin{suffix}"] = _margin(
            context, protected, REFINEMENT[keep], tau, None if context.is_pair else "no pair was compared"
        )
        missing = None if context.is_pair or reference else "no reference: this receipt is the reference"
        zero = None if handoff is None else 0.0
        out[f"handoff_margin{suffix}"] = _margin(context, protected, HANDOFF[keep], zero, missing)
    return out | smooth_margins(context, [result.facts for result in protected], reference)


def _margin(
    context: Context,
    layers: Sequence[LayerResult],
    keys: Sequence[str],
    tau: float | None,
    missing: str | None,
) -> Interval:
    if missing is not None:
        return _null(missing)
    if tau is None:
        return _null("no weights registered")
    if not layers:
        return _null("no protected layer")
    inapplicable = _inapplicable(layers, keys)
    if inapplicable is not None:
        return _null(inapplicable) | {"not_applicable": True}
    samples = [_branch(context, layer, key) for layer in layers for key in keys]
    estimates = [sample.estimate for sample in samples]
    if not np.isfinite(estimates).all():
        worst = next(sample for sample in samples if not np.isfinite(sample.estimate))
        return _null(worst.reason or NOT_MEASURED)
    return _bounded(context, layers, keys, samples, tau)


def _bounded(
    context: Context, layers: Sequence[LayerResult], keys: Sequence[str], samples: list[Resampled], tau: float
) -> Interval:
    top = int(np.argmax([sample.estimate for sample in samples]))
    high_load = max(upper_bound(sample, context.tail) for sample in samples)
    lower = [bound for bound in simultaneous_lower(samples, context.tail) if bound is not None]
    out: Interval = {
        "estimate": tau - samples[top].estimate,
        "low": finite(tau - high_load),
        "high": finite(tau - max(lower)) if lower else None,
        "windows": context.base_windows,
        "documents": context.design.documents,
        "layer": layers[top // len(keys)].facts["layer"],
    }
    if all(sample.exact for sample in samples):
        out["exact"] = True
    elif out["low"] is None or out["high"] is None:
        out["reason"] = next(
            (s.reason for s in samples if s.reason is not None), "the resamples do not bound it"
        )
    return out


def _branch(context: Context, result: LayerResult, key: str) -> Resampled:
    """Return a load; it is exactly zero if inputs of equal values imply that and the data agree."""
    sample = result.loads[key]
    needs = {
        "load.drift": ("boundary_drift", "content_drift"),
        "load.drift_and_occupancy": ("boundary_drift", "content_drift", *DROPS),
        "deficit.overlap": ("overlap_drop",),
        "deficit.overlap_and_occupancy": ("overlap_drop", *DROPS),
    }[key]
    by_bytes = all(is_exact(context, result.facts, need) for need in needs)
    if sample.estimate == 0.0 and sample.reason == NO_VARIANCE and by_bytes:
        return exact_zero(sample.windows, sample.documents)
    return sample


def _inapplicable(layers: Sequence[LayerResult], keys: Sequence[str]) -> str | None:
    inputs = ("boundary_drift", "content_drift") if keys[-1] in REFINEMENT else ("overlap",)
    for result in layers:
        for key in inputs:
            reason = why_not_applicable(result.facts, key)
            if reason is not None:
                return f"layer {result.facts['layer']}: {reason}"
    return None


def _null(reason: str) -> Interval:
    return {"estimate": None, "low": None, "high": None, "windows": 0, "documents": 0, "reason": reason}
