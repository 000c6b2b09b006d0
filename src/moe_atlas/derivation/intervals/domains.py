"""Output of each domain: loss, accuracy and divergence, damaged documents, and task success.

Shape legend: W windows, Wd windows of one domain, C documents of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.derivation.intervals.context import F64, Context, Facts
from moe_atlas.derivation.intervals.means import NOT_MEASURED
from moe_atlas.derivation.intervals.non_finite import Broken, broken_windows
from moe_atlas.statistics.bootstrap import domain_means
from moe_atlas.statistics.clopper_pearson import clopper_pearson_lower, clopper_pearson_upper
from moe_atlas.statistics.design import Design
from moe_atlas.statistics.resampled import Interval, Resampled, exact_zero, undefined
from moe_atlas.window_arrays import METRICS

DIFFERENCES = {
    "nll": "nll_increase",
    "token_accuracy": "token_accuracy_gain",
    "exact_match": "exact_match_gain",
}
PAIR_ONLY = ("nll_tuned", *DIFFERENCES.values(), "kl", "top1_agreement")


def derive_domains(context: Context, layers: list[int]) -> list[dict[str, Any]]:
    """Return one row for each registered domain, in registered order.

    Args:
        context: the settings and window data.
        layers: the routed layers in the order in which a token passes them.
    """
    broken = broken_windows(context, layers)
    return [_row(context, number, domain, broken) for number, domain in enumerate(context.domains)]


def _row(context: Context, number: int, domain: Facts, broken: Broken) -> dict[str, Any]:
    chosen_W = np.asarray(context.windows["windows.domain"] == number)
    design = context.domain_design(chosen_W)
    columns = _columns(context, chosen_W)
    samples = _samples(context, design, columns)
    row: dict[str, Any] = {"name": domain["name"], "role": domain["role"]}
    row |= {"documents": design.documents, "windows": int(chosen_W.sum())}
    row |= {key: context.interval(sample, key) for key, sample in samples.items()}
    row |= _non_finite(context, broken, chosen_W)
    if not context.is_pair:
        return row | dict.fromkeys(PAIR_ONLY)
    increase = columns.get("nll_increase")
    if domain["role"] == "base":
        for key in ("nll_increase", "kl"):
            row[key] |= context.passing(samples[key], key)
        row["damaged_documents"] = _damaged_documents(context, design, increase)
    if domain["role"] == "canary":
        row["worst_window"] = _worst_window(domain, increase)
    if domain["role"] == "task" and domain.get("success"):
        row["success"] = _success(context, domain["success"], row)
    return row


def _columns(context: Context, chosen_W: NDArray[np.bool_]) -> dict[str, F64]:
    """Return the output columns of one domain, and the paired differences tuned - base."""
    columns: dict[str, F64] = {}
    for key in [f"{metric}_{side}" for metric in METRICS for side in ("base", "tuned")] + [
        "kl",
        "top1_agreement",
    ]:
        values_W = context.array(f"output.{key}")
        if values_W is not None:
            columns[key] = values_W[chosen_W]
    for metric, name in DIFFERENCES.items():
        base, tuned = columns.get(f"{metric}_base"), columns.get(f"{metric}_tuned")
        if base is not None and tuned is not None:
            with np.errstate(invalid="ignore"):
                difference = tuned - base
            both_infinite = np.isinf(base) & np.isinf(tuned)
            columns[name] = np.where(both_infinite, np.inf, difference)
    return columns


def _samples(context: Context, design: Design, columns: dict[str, F64]) -> dict[str, Resampled]:
    wanted = [f"{metric}_base" for metric in METRICS]
    if context.is_pair:
        wanted += [f"{metric}_tuned" for metric in METRICS] + [*DIFFERENCES.values(), "kl", "top1_agreement"]
    out = {key: undefined(NOT_MEASURED) for key in wanted}
    present = [key for key in wanted if key in columns]
    if present and design.documents:
        means = domain_means(np.stack([columns[key] for key in present], axis=1), design)
        out |= dict(zip(present, means, strict=True))
    for key in ("nll_increase", "kl", "token_accuracy_gain", "exact_match_gain"):
        if context.identical and key in columns and bool(np.all(columns[key] == 0.0)):
            out[key] = exact_zero(out[key].windows, out[key].documents)
    return out


def _non_finite(context: Context, broken: Broken, chosen_W: NDArray[np.bool_]) -> dict[str, int | None]:
    """Return how many windows are not finite in the base, and in the tuned checkpoint alone, with the first such layer.

    The layer is None if all states are finite and only the output is not. A count is None if no window was found and
    the audit did not count tokens.
    """
    found: dict[str, int | None] = {"non_finite_base": int(broken.base_W[chosen_W].sum())}
    if context.is_pair:
        tuned_W = broken.tuned_W & chosen_W
        at = broken.first_W[tuned_W]
        passed = [layer for layer in broken.layers if layer in at]
        found |= {"non_finite_windows": int(tuned_W.sum()), "non_finite_layer": passed[0] if passed else None}
    return {key: value if value or broken.counted else None for key, value in found.items()}


def _damaged_documents(context: Context, design: Design, increase: F64 | None) -> dict[str, Any]:
    """Return how many documents have a mean increase above the registered per-document limit (the tail guard).

    ``share_high`` is the exact Clopper-Pearson 97.5 % upper bound on their share.
    """
    limit = context.policy["damage"].get("document_nll")
    if increase is None or limit is None or not design.documents:
        return {"count": None, "documents": 0, "share": None, "share_high": None, "reason": NOT_MEASURED}
    defined_W = ~np.isnan(increase)
    stacked = np.stack([np.where(defined_W, increase, 0.0), defined_W.astype(np.float64)], axis=1)
    sums_CQ = design.sums(stacked)
    measured_C = sums_CQ[:, 1] > 0
    documents = int(measured_C.sum())
    count = int((sums_CQ[measured_C, 0] > float(limit) * sums_CQ[measured_C, 1]).sum())
    return {
        "count": count,
        "documents": documents,
        "share": count / documents if documents else None,
        "share_high": clopper_pearson_upper(count, documents),
    }


def _worst_window(domain: Facts, increase: F64 | None) -> dict[str, Any]:
    """Return the largest increase of a canary window, and how many windows are undefined or above the limit."""
    if increase is None or not len(increase) or np.isnan(increase).all():
        return {"nll_increase": None, "limit": domain.get("max_nll_increase"), "undefined": 0, "over": 0}
    limit = domain.get("max_nll_increase")
    worst = float(np.nanmax(increase))
    over = 0 if limit is None else int((increase > float(limit)).sum())
    undefined_windows = int(np.isnan(increase).sum())
    shown = worst if np.isfinite(worst) else None
    return {"nll_increase": shown, "limit": limit, "undefined": undefined_windows, "over": over}


def _success(context: Context, rule: Facts, row: Facts) -> dict[str, Any]:
    """Return a task's registered rule with the interval that it applies to, and with the same interval of the base.

    Each window either matches exactly or not. With one window per document, or if all documents agree, an absolute
    `exact_match` gets the exact Clopper-Pearson interval instead of the bootstrap's. If almost all documents agree,
    many resamples have no variance, and the bootstrap gives no bound: 117 right of 120 would have no lower bound.
    """
    relative = rule.get("relative_to_base") is True
    metric = rule["metric"]
    value: Interval = dict(row[DIFFERENCES[metric] if relative else f"{metric}_tuned"])
    own: Interval = dict(row[f"{metric}_base"])
    if relative:
        own = context.interval(exact_zero(own["windows"], own["documents"]))
    elif metric == "exact_match":
        value, own = (_share_right(shown, (1.0 - context.confidence) / 2.0) for shown in (value, own))
    limits = {key: rule[key] for key in ("at_most", "at_least") if rule.get(key) is not None}
    return {"metric": metric, "relative_to_base": relative, **limits, "value": value, "base": own}


def _share_right(shown: Interval, tail: float) -> Interval:
    estimate, documents = shown["estimate"], int(shown["documents"])
    if estimate is None or (shown["windows"] != documents and estimate not in (0.0, 1.0)):
        return shown
    hits = round(estimate * documents)
    shown["low"] = clopper_pearson_lower(hits, documents, tail)
    shown["high"] = clopper_pearson_upper(hits, documents, tail)
    return {key: value for key, value in shown.items() if key != "reason"}
