"""The intervals of one routed layer: those of the pair and those of each checkpoint.

Shape legend: C documents, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moe_atlas.derivation.intervals.context import F64, Context, Facts
from moe_atlas.derivation.intervals.expert_content import Experts, derive_experts
from moe_atlas.derivation.intervals.margin_loads import HANDOFF, LOADS, REFINEMENT, load_functionals
from moe_atlas.derivation.intervals.means import (
    FORMAT_KEYS,
    NOT_MEASURED,
    PAIR_KEYS,
    as_intervals,
    layer_means,
    mean_samples,
    tail_columns,
    tail_mean,
    window_columns,
)
from moe_atlas.derivation.intervals.occupancy import (
    Occupancy,
    dead_samples,
    differences,
    health_functionals,
    read_occupancy,
)
from moe_atlas.derivation.intervals.smooth import smooth_facts
from moe_atlas.statistics.bootstrap import studentised, switching
from moe_atlas.statistics.linearised import Linearised, ResampleBatch
from moe_atlas.statistics.resampled import Resampled, undefined
from moe_atlas.window_arrays import BUDGET, CONTROLS, FLIPS, HEALTH, LAYER_ARRAYS, SIDES

OCCUPANCY_KEYS = ("load_entropy", "effective_experts", "load_cv", "max_violation", "min_share")
# Functionals that contain an extremum over experts; resamples may differ in which expert is extreme.
EXTREMA = (
    *(f"{side}.{key}" for side in SIDES for key in ("min_share", "max_violation")),
    *(REFINEMENT[-1], HANDOFF[-1]),
)
RATIO_KEYS = ("jump_relative", "overlap_boundary_contrast")
NEGLIGIBLE = (
    1e-6  # share of mean |V0|; the ratio of the budget is undefined if the mean actual change is smaller
)


@dataclass
class LayerResult:
    """The results of one layer: its object in the receipt, and the samples that later steps use.

    Attributes:
        facts: the layer's facts.
        derived: the layer's complete object.
        pair: samples of the differences between the checkpoints, by channel.
        health: samples of each checkpoint's own quantities.
        loads: samples of the layer's loads on the margins.
        experts: the content change of single experts; None for a baseline.
    """

    facts: Facts
    derived: dict[str, Any]
    pair: dict[str, Resampled] = field(default_factory=dict)
    health: dict[str, dict[str, Resampled]] = field(default_factory=dict)
    loads: dict[str, Resampled] = field(default_factory=dict)
    experts: Experts | None = None


def derive_layer(context: Context, layer: Facts, reference: Facts | None) -> LayerResult:
    """Derive the results of one routed layer from its facts and window arrays."""
    prefix = f"layers.{layer['layer']}"
    sides = SIDES if context.is_pair else SIDES[:1]
    occupancy = {side: read_occupancy(context, f"{prefix}.{side}", layer["top_k"]) for side in sides}
    curved = _functionals(context, layer, occupancy, reference)
    result = LayerResult(layer, dict(layer))
    for side in sides:
        samples = _health(context, layer, side, occupancy[side], curved)
        result.health[side] = samples
        result.derived[side] = dict(layer[side]) | as_intervals(context, layer, samples)
        result.derived[side] |= _points(context, layer, side, occupancy[side])
    result.loads = {key: curved.get(key, undefined(NOT_MEASURED)) for key in LOADS}
    if not context.is_pair:
        return _without_pair(result)
    base, tuned = occupancy["base"], occupancy["tuned"]
    dead = _dead_pair(result)
    result.pair = _pair_means(context, layer, prefix)
    result.pair |= differences(context, layer, base, tuned, curved, dead)
    result.derived["pair"] = as_intervals(context, layer, result.pair) | _budget(
        context, layer, f"{prefix}.pair"
    )
    result.derived["pair"] |= {"flips": _flips(context, f"{prefix}.pair")}
    result.experts = derive_experts(context, layer)
    result.derived["pair"] |= {
        "expert_content": result.experts.shown,
        "expert_coverage": result.experts.coverage,
    }
    same_index = _same_index(context, layer, prefix)
    if same_index:
        result.derived["same_index"] = same_index
    controls = layer_means(context, layer, f"{prefix}.control", CONTROLS)
    result.derived["control"] = as_intervals(context, layer, controls)
    return result


def _without_pair(result: LayerResult) -> LayerResult:
    result.derived |= {"tuned": None, "pair": None}
    return result


def _dead_pair(result: LayerResult) -> tuple[Resampled, Resampled] | None:
    base, tuned = (result.health[side]["dead_experts"] for side in SIDES)
    return None if base.values_B is None or tuned.values_B is None else (base, tuned)


def _pair_means(context: Context, layer: Facts, prefix: str) -> dict[str, Resampled]:
    arrays: dict[str, F64 | None] = {key: context.array(f"{prefix}.pair.{key}") for key in PAIR_KEYS}
    formats = {key: context.array(f"{prefix}.pair.{key}") for key in FORMAT_KEYS}
    arrays |= {key: values for key, values in formats.items() if values is not None}
    base, tuned = context.array(f"{prefix}.base.overlap"), context.array(f"{prefix}.tuned.overlap")
    arrays["overlap_drop"] = None if base is None or tuned is None else base - tuned
    return mean_samples(context, layer, arrays)


def _budget(context: Context, layer: Facts, prefix: str) -> dict[str, Any]:
    """Return the terms of the perturbation budget (Eq. 15), and bound / actual unless the change is negligible."""
    samples = layer_means(context, layer, f"{prefix}.perturbation_budget", BUDGET)
    actual, norm = samples["actual"].estimate, samples["base_norm"].estimate
    out = as_intervals(context, layer, samples)
    columns = [window_columns(context, f"{prefix}.perturbation_budget.{key}") for key in ("bound", "actual")]
    if not (np.isfinite(actual) and np.isfinite(norm)) or columns[0] is None or columns[1] is None:
        ratio = undefined(NOT_MEASURED)
    elif actual < NEGLIGIBLE * norm or actual == 0.0:
        ratio = undefined("the actual change is negligible beside the routed field")
    else:
        bound, change = columns[0], columns[1]

        def functional(batch: ResampleBatch) -> dict[str, Linearised]:
            return {"ratio": batch.domain_mean(*bound) / batch.domain_mean(*change)}

        ratio = studentised(functional, context.design, context.base_windows)["ratio"]
    return {"perturbation_budget": out | as_intervals(context, layer, {"ratio": ratio})}


def _flips(context: Context, prefix: str) -> dict[str, int | None]:
    """Return the number of anchored set changes, and how many lie inside and outside the noise band."""
    arrays = {key: context.array(f"{prefix}.flips.{key}") for key in FLIPS}
    return {key: None if values is None else int(values.sum()) for key, values in arrays.items()}


def _same_index(context: Context, layer: Facts, prefix: str) -> dict[str, Any]:
    """Return the channels without the relabelling of experts; empty if the audit relabelled none.

    Channels that compare experts are exactly 0 for equal values only after the relabelling.
    """
    own = f"{prefix}.same_index"
    arrays = (array for array in LAYER_ARRAYS.values() if array.place == "same_index")
    if not any(array.at(layer["layer"]) in context.windows for array in arrays):
        return {}
    exact = {key: layer.get("exact", {}).get(key, False) for key in ("states", "gain")}
    context, layer = replace(context, identical=False), dict(layer) | {"exact": exact}
    out = as_intervals(context, layer, layer_means(context, layer, own, PAIR_KEYS))
    return out | _budget(context, layer, own) | {"flips": _flips(context, own)}


def _health(
    context: Context, layer: Facts, side: str, occupancy: Occupancy | None, curved: dict[str, Resampled]
) -> dict[str, Resampled]:
    prefix = f"layers.{layer['layer']}.{side}"
    samples = layer_means(context, layer, prefix, HEALTH)
    samples["jump_near_boundary"] = tail_mean(context, f"{prefix}.jump_low")
    missing = undefined(NOT_MEASURED)
    for key in (*OCCUPANCY_KEYS, *RATIO_KEYS):
        samples[key] = curved.get(f"{side}.{key}", missing)
    dead = {"dead_experts": missing, "active_experts": missing}
    return samples | (dead if occupancy is None else dead_samples(context, occupancy))


def _points(context: Context, layer: Facts, side: str, occupancy: Occupancy | None) -> dict[str, Any]:
    points = {"expert_share": None, "dead_by_chance": None} if occupancy is None else occupancy.points()
    smooth = context.rewrite("smooth")
    beta = None if smooth is None else float(smooth["occupancy"])
    return points | smooth_facts(context, f"layers.{layer['layer']}.{side}", beta)


def _functionals(
    context: Context, layer: Facts, occupancy: dict[str, Occupancy | None], reference: Facts | None
) -> dict[str, Resampled]:
    """Return the samples of all smooth functionals of a layer, computed in one pass over the resamples."""
    prefix = f"layers.{layer['layer']}"
    ratios = {side: _ratio_columns(context, f"{prefix}.{side}") for side in occupancy}
    loads = load_functionals(context, layer, occupancy, reference)

    def functional(batch: ResampleBatch) -> dict[str, Linearised]:
        out: dict[str, Linearised] = {}
        health: dict[str, dict[str, Linearised]] = {}
        for side, counts in occupancy.items():
            health[side] = {} if counts is None else health_functionals(counts.on(batch))
            out |= {f"{side}.{key}": value for key, value in health[side].items()}
            out |= {f"{side}.{key}": _ratio(batch, key, pair) for key, pair in ratios[side].items()}
        if health["base"] and health.get("tuned"):
            out["entropy_drop"] = health["base"]["load_entropy"] - health["tuned"]["load_entropy"]
            out["load_cv_rise"] = health["tuned"]["load_cv"] - health["base"]["load_cv"]
        return out | loads(batch, health)

    samples = studentised(functional, context.design, context.base_windows)
    return {key: switching(s) if key in EXTREMA else s for key, s in samples.items()}


Columns = tuple[F64, F64]


def _ratio_columns(context: Context, prefix: str) -> dict[str, tuple[Columns, Columns]]:
    found = {
        "jump_relative": (
            window_columns(context, f"{prefix}.jump"),
            window_columns(context, f"{prefix}.field_norm"),
        ),
        "overlap_boundary_contrast": (
            tail_columns(context, f"{prefix}.overlap_low"),
            tail_columns(context, f"{prefix}.overlap_high"),
        ),
    }
    return {key: (a, b) for key, (a, b) in found.items() if a is not None and b is not None}


def _ratio(batch: ResampleBatch, key: str, pair: tuple[Columns, Columns]) -> Linearised:
    first, second = batch.domain_mean(*pair[0]), batch.domain_mean(*pair[1])
    return first / second if key == "jump_relative" else first - second
