"""Content change of single experts: the worst expert of a layer, and the experts with too few tokens for a number.

Content drift averages over tokens, so one broken expert of many hardly changes it. Here each expert has a mean over the
tokens that use it, and the gate tests the largest of these means. The bound on the worst expert is the largest bound of
any expert. A FAIL rests on a bound that holds for all experts of all protected layers at once.

Shape legend: C documents, E experts, G guarded experts (those with enough tokens and documents), B resamples, N
documents of a stratum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.derivation.intervals.context import F64, Context, Facts
from moe_atlas.derivation.intervals.means import NOT_MEASURED, REFUTED, is_exact, why_not_applicable
from moe_atlas.statistics.bootstrap import NOT_FINITE
from moe_atlas.statistics.pooled import pooled_ratios
from moe_atlas.statistics.resampled import Resampled, exact_zero, interval, undefined, upper_quantile

KEY = "expert_content"
# With fewer tokens or documents an expert gets no interval; only the change of its weights is known then.
TOKENS = 64
DOCUMENTS = 30


@dataclass(frozen=True)
class Experts:
    """The experts of one layer.

    Attributes:
        shown: the receipt's interval of the worst expert, with its number.
        coverage: the number of guarded experts, and the experts with too few tokens or with none.
        bounds: estimate and standard error of each guarded expert, float64 [2, G].
        worst_t_B: the largest studentised resample over the guarded experts, float64 [B]; None if no expert varies.
    """

    shown: dict[str, Any]
    coverage: dict[str, Any]
    bounds: F64
    worst_t_B: F64 | None


def derive_experts(context: Context, layer: Facts) -> Experts:
    """Derive the experts of one layer from its window arrays."""
    prefix = f"layers.{layer['layer']}"
    sums_WE, counts_WE = (context.array(f"{prefix}.pair.{KEY}.{key}") for key in ("sum", "count"))
    if sums_WE is None or counts_WE is None:
        return _unmeasured(context, layer, context.array(f"{prefix}.base.counts"))
    sums_CE, counts_CE = context.design.sums(sums_WE), context.design.sums(counts_WE)
    tokens_E, documents_E = counts_CE.sum(axis=0), (counts_CE > 0).sum(axis=0)
    guarded_E = (tokens_E >= TOKENS) & (documents_E >= DOCUMENTS)
    coverage = _coverage(guarded_E, tokens_E)
    guarded = np.flatnonzero(guarded_E)
    sample, samples = _samples(context, layer, sums_CE, counts_CE, guarded)
    if sample is not None:
        return Experts(context.interval(sample, KEY), coverage, np.zeros((2, 0)), None)
    worst = max(range(len(samples)), key=lambda number: samples[number].estimate)
    shown = _worst(context, samples) | {
        "windows": int((counts_WE[:, guarded[worst]] > 0).sum()),
        "documents": samples[worst].documents,
        "expert": int(guarded[worst]),
        "tokens": int(tokens_E[guarded[worst]]),
    }
    varying = [found.t_B for found in samples if found.t_B is not None]
    bounds = np.array([[found.estimate for found in samples], [found.se for found in samples]])
    return Experts(shown, coverage, bounds, np.max(varying, axis=0) if varying else None)


def simultaneous_low(layers: Sequence[Experts], tail: float) -> list[float | None]:
    """Return lower bounds on the worst expert of each layer that hold for all experts of all layers at once (max-T).

    Args:
        layers: the protected layers.
        tail: one-sided error of the whole family.
    """
    varying = [found.worst_t_B for found in layers if found.worst_t_B is not None]
    step = upper_quantile(np.max(varying, axis=0), tail) if varying else 0.0
    return [_bound(found, step) for found in layers]


def _bound(found: Experts, step: float) -> float | None:
    if found.shown.get("exact"):
        return 0.0
    estimate_G, se_G = found.bounds
    with np.errstate(invalid="ignore"):
        low_G = np.where(se_G == 0.0, estimate_G, estimate_G - step * se_G)
    return float(low_G.max()) if len(low_G) and np.isfinite(low_G.max()) else None


def _samples(
    context: Context, layer: Facts, sums_CE: F64, counts_CE: F64, guarded: NDArray[np.int64]
) -> tuple[Resampled | None, list[Resampled]]:
    """Return one sample for the layer if its content is exact or undefined, otherwise one for each guarded expert."""
    sizes = context.base_windows, context.design.documents
    if is_exact(context, layer, KEY):
        return (undefined(REFUTED, *sizes) if np.any(sums_CE) else exact_zero(*sizes)), []
    if not np.isfinite(sums_CE).all():
        return undefined(NOT_FINITE, *sizes), []
    if not len(guarded):
        few = f"no expert has {TOKENS} tokens of {DOCUMENTS} documents behind it"
        return undefined(few, *sizes), []
    return None, pooled_ratios(sums_CE[:, guarded], counts_CE[:, guarded], context.design)


def _worst(context: Context, samples: Sequence[Resampled]) -> dict[str, Any]:
    """Return the largest estimate and the largest of each bound; no upper bound if one expert has none."""
    found = [interval(sample, context.confidence, 0.0, 1.0) for sample in samples]
    lows = [entry["low"] for entry in found if entry["low"] is not None]
    highs = [entry["high"] for entry in found]
    open_high = next((entry.get("reason") for entry in found if entry["high"] is None), None)
    shown: dict[str, Any] = {
        "estimate": max(entry["estimate"] for entry in found),
        "low": max(lows) if lows else None,
        "high": None if None in highs else max(highs),
    }
    return shown if open_high is None else shown | {"reason": open_high}


def _unmeasured(context: Context, layer: Facts, counts_WE: F64 | None) -> Experts:
    """Return the experts of a layer without content: none is guarded, and the base's routing says which are reached."""
    shown = context.interval(undefined(NOT_MEASURED), KEY)
    reason = why_not_applicable(layer, KEY)
    if reason is not None:
        shown |= {"not_applicable": True, "reason": reason}
    tokens_E = np.zeros(layer["experts"]) if counts_WE is None else counts_WE.sum(axis=0)
    return Experts(shown, _coverage(np.zeros(len(tokens_E), dtype=bool), tokens_E), np.zeros((2, 0)), None)


def _coverage(guarded_E: NDArray[np.bool_], tokens_E: F64) -> dict[str, Any]:
    return {
        "guarded": int(guarded_E.sum()),
        "thin": np.flatnonzero(~guarded_E & (tokens_E > 0)).tolist(),
        "unreached": np.flatnonzero(tokens_E == 0).tolist(),
    }
