"""Read from receipts, for each pair, a number per quantity that might track forgetting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.channels import DRIFTS
from moe_atlas.derivation.intervals.occupancy import DROPS
from moe_atlas.errors import UsageError
from moe_atlas.text import shown
from moe_atlas.views.measured import Interval, LayerView
from moe_atlas.views.receipt import ReceiptView

Facts = Mapping[str, Any]
F64 = NDArray[np.float64]

CHANNELS = tuple(channel.key for channel in DRIFTS)
PUBLISHED = {"coordinate_drift_z": ("coordinate_drift",)}
"""For a gated channel, the form of it that the paper prints."""
ATLAS = (*(form for key in CHANNELS for form in (key, *PUBLISHED.get(key, ()))), "overlap_drop")
RAW = ("raw_norm_drift", "raw_state_drift")
TELEMETRY = DROPS
DISTANCE = "parameter_distance"
QUANTITIES = (*ATLAS, "native_boundary_drift", *RAW, DISTANCE, *TELEMETRY)
LEARNED = 0.5  # a task counts as learned if the tuned NLL is at most this share of the base's


@dataclass(frozen=True)
class Task:
    """A task that a pair learned.

    Attributes:
        name: the domain's name.
        nll: the tuned checkpoint's NLL per scored token.
        base: the base's NLL per scored token.
    """

    name: str
    nll: float
    base: float


@dataclass(frozen=True)
class Reading:
    """The quantities of a receipt.

    Attributes:
        name: the receipt's path.
        family: architecture of the base.
        forgetting: mean over base domains of the paired NLL increase, nats per token.
        values: each quantity's mean over protected layers; NaN if it is undefined.
        outcome: outcome of the rewrite predicate: preserved, rewritten or undetermined.
        classification: outcome of the third predicate.
        tasks: the learned tasks.
    """

    name: str
    family: str
    forgetting: float
    values: Mapping[str, float]
    outcome: str
    classification: str
    tasks: tuple[Task, ...]


def reading_of(receipt: Facts, name: str) -> Reading:
    """Read the receipt of an audit, verified already.

    Raises:
        UsageError: ``E_KIND`` if the receipt is no audit.
    """
    view = ReceiptView(receipt)
    if view.kind != "audit":
        raise UsageError("E_KIND", shown(name), f"expected the receipt of an audit, found a {view.kind}")
    increases = [_estimate(row.nll_increase) for row in view.domains_of("base")]
    layers = [layer for layer in view.layers if layer.protected]
    values = {key: _layer_mean(layers, key) for key in QUANTITIES}
    distance = view.controls.parameter_distance if view.controls else None
    values[DISTANCE] = math.nan if distance is None else float(distance)
    return Reading(
        name=name,
        family=str(view.checkpoint("base").family),
        forgetting=float(np.mean(increases)) if increases else math.nan,
        values=values,
        outcome=view.predicates["protected_atlas_rewrite"].outcome,
        classification=view.predicates["knowledge_expansive"].outcome,
        tasks=tuple(_learned(view)),
    )


def _learned(view: ReceiptView) -> list[Task]:
    rows = view.domains_of("task")
    tasks = [Task(row.name, _estimate(row.nll_tuned), _estimate(row.nll_base)) for row in rows]
    return [task for task in tasks if task.nll <= LEARNED * task.base]


def _estimate(interval: Interval | None) -> float:
    value = None if interval is None else interval.estimate
    return math.nan if value is None else float(value)


def _layer_mean(layers: Sequence[LayerView], key: str) -> float:
    blocks = [layer.control if key in RAW else layer.pair for layer in layers]
    values = [_estimate(block.interval(key) if block else None) for block in blocks]
    return float(np.mean(values)) if values else math.nan


def ranks_within(values: F64, groups: Sequence[str]) -> F64:
    """Return average ranks within each group, scaled to 0..1, because families differ in scale."""
    out = np.empty(len(values))
    labels = np.asarray(groups)
    for group in np.unique(labels):
        chosen = labels == group
        out[chosen] = (average_ranks(values[chosen]) - 0.5) / chosen.sum()
    return out


def average_ranks(values: F64) -> F64:
    """Return ranks 1..n; ties share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[inverse.reshape(-1)])
