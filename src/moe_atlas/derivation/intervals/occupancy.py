"""Occupancy of one layer (Eq. 16-17) and the functionals built on it, from integer counts per window.

Shape legend: C documents, E experts, B resamples, W base-role windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_atlas.channels import OCCUPANCY
from moe_atlas.derivation.intervals.context import F64, Context, Facts
from moe_atlas.derivation.intervals.means import NOT_MEASURED, is_exact
from moe_atlas.statistics.bootstrap import basic
from moe_atlas.statistics.linearised import Counts, Linearised, ResampleBatch
from moe_atlas.statistics.resampled import NO_VARIANCE, Resampled, exact_zero, undefined

# First the smooth functionals of the counts, then the count of dead experts, which is a step function.
DROPS = tuple(channel.key for channel in sorted(OCCUPANCY, key=lambda channel: channel.counts_experts))


class Occupancy:
    """Counts of one checkpoint at one layer, per document.

    Attributes:
        counts_CE: routed tokens per document and expert.
        tokens_C: tokens per document (counts / k).
        top_k: experts per token.
    """

    def __init__(self, context: Context, counts_WE: F64, top_k: int) -> None:
        self.counts_CE = context.design.sums(counts_WE)
        self.tokens_C = self.counts_CE.sum(axis=1) / top_k
        self.top_k = top_k

    def on(self, batch: ResampleBatch) -> Counts:
        """Return the pooled counts on a batch of resamples."""
        return Counts(batch, self.counts_CE, self.tokens_C)

    def points(self) -> dict[str, Any]:
        """Return point values: the share of tokens of each expert, and the expected number of dead experts."""
        tokens = float(self.tokens_C.sum())
        experts = self.counts_CE.shape[1]
        if tokens == 0:
            return {"expert_share": None, "dead_by_chance": None}
        share_E = self.counts_CE.sum(axis=0) / tokens
        unseen = float(experts * (1.0 - self.top_k / experts) ** tokens)
        return {"expert_share": [float(share) for share in share_E], "dead_by_chance": unseen}


def read_occupancy(context: Context, prefix: str, top_k: int) -> Occupancy | None:
    """Return the occupancy stored under ``{prefix}.counts``; None if it was not measured."""
    counts_WE = context.array(f"{prefix}.counts")
    return None if counts_WE is None else Occupancy(context, counts_WE, top_k)


def health_functionals(counts: Counts) -> dict[str, Linearised]:
    """Return the smooth occupancy functionals of one checkpoint."""
    entropy = counts.load_entropy()
    return {
        "load_entropy": entropy,
        "effective_experts": entropy.exp(),
        "load_cv": counts.load_cv(),
        "max_violation": counts.max_violation(),
        "min_share": counts.min_share(),
    }


def dead_samples(context: Context, occupancy: Occupancy) -> dict[str, Resampled]:
    """Return the samples of dead and active experts: step functions of the counts, recomputed on every resample."""
    design = context.design
    experts = occupancy.counts_CE.shape[1]
    dead_B = occupancy.on(ResampleBatch(design, design.weights_BC)).dead()
    dead = float((occupancy.counts_CE.sum(axis=0) == 0).sum())
    return {
        "dead_experts": basic(dead, dead_B, design, context.base_windows),
        "active_experts": basic(experts - dead, experts - dead_B, design, context.base_windows),
    }


def differences(
    context: Context,
    layer: Facts,
    base: Occupancy | None,
    tuned: Occupancy | None,
    found: dict[str, Resampled],
    dead: tuple[Resampled, Resampled] | None,
) -> dict[str, Resampled]:
    """Return the three gated occupancy differences of a pair.

    Args:
        context: settings and design.
        layer: the layer's facts.
        base: counts of the base; None if not measured.
        tuned: counts of the tuned checkpoint.
        found: samples of the smooth functionals, with ``entropy_drop`` and ``load_cv_rise``.
        dead: dead experts of base and tuned.

    Returns:
        ``entropy_drop`` (nats), ``load_cv_rise`` (ratio) and ``dead_share_rise`` (share of all experts).
        If the counts agree in every document although the weights differ, there is no variance, so no gate passes.
    """
    if base is None or tuned is None or dead is None:
        return {key: undefined(NOT_MEASURED) for key in DROPS}
    same = bool(np.array_equal(_by_column(base.counts_CE), _by_column(tuned.counts_CE)))
    if same and all(is_exact(context, layer, key) for key in DROPS):
        return {key: exact_zero(context.base_windows, context.design.documents) for key in DROPS}
    rise = _dead_share_rise(context, base.counts_CE.shape[1], dead)
    if same:
        rise = Resampled(rise.estimate, 0.0, rise.t_B, rise.windows, rise.documents, NO_VARIANCE)
    return {
        "entropy_drop": found["entropy_drop"],
        "load_cv_rise": found["load_cv_rise"],
        "dead_share_rise": rise,
    }


def _by_column(counts_CE: F64) -> F64:
    """Return the counts with the experts in a sorted order, so that the numbering of the experts does not matter."""
    return counts_CE[:, np.lexsort(counts_CE)]


def _dead_share_rise(context: Context, experts: int, dead: tuple[Resampled, Resampled]) -> Resampled:
    base, tuned = dead
    assert base.values_B is not None
    assert tuned.values_B is not None
    rise_B = (tuned.values_B - base.values_B) / experts
    return basic((tuned.estimate - base.estimate) / experts, rise_B, context.design, context.base_windows)
