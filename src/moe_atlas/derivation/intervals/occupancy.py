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
from moe_atlas.statistics.linearised import Batch, Counts, Linearised
from moe_atlas.statistics.sample import NO_VARIANCE, Sample, exact_zero, undefined

# Smooth functionals of the counts first, then what moves in steps of an expert.
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

    def on(self, batch: Batch) -> Counts:
        """Return the pooled counts on a batch of resamples."""
        return Counts(batch, self.counts_CE, self.tokens_C)

    def points(self) -> dict[str, Any]:
        """Point values: the share of tokens each expert sees, and the dead experts that chance explains."""
        tokens = float(self.tokens_C.sum())
        experts = self.counts_CE.shape[1]
        if tokens == 0:
            return {"expert_share": None, "dead_by_chance": None}
        share_E = self.counts_CE.sum(axis=0) / tokens
        unseen = float(experts * (1.0 - self.top_k / experts) ** tokens)
        return {"expert_share": [float(share) for share in share_E], "dead_by_chance": unseen}


def read_occupancy(context: Context, prefix: str, top_k: int) -> Occupancy | None:
    """Return the occupancy stored under ``{prefix}.counts``, None when it was not measured."""
    counts_WE = context.array(f"{prefix}.counts")
    return None if counts_WE is None else Occupancy(context, counts_WE, top_k)


def health_functionals(counts: Counts) -> dict[str, Linearised]:
    """The smooth occupancy functionals of one checkpoint."""
    entropy = counts.load_entropy()
    return {
        "load_entropy": entropy,
        "effective_experts": entropy.exp(),
        "load_cv": counts.load_cv(),
        "max_violation": counts.max_violation(),
        "min_share": counts.min_share(),
    }


def dead_samples(context: Context, occupancy: Occupancy) -> dict[str, Sample]:
    """Dead and active experts: step functions of the counts, recomputed on every resample."""
    design = context.design
    experts = occupancy.counts_CE.shape[1]
    dead_B = occupancy.on(Batch(design, design.weights_BC)).dead()
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
    found: dict[str, Sample],
    dead: tuple[Sample, Sample] | None,
) -> dict[str, Sample]:
    """The three gated occupancy differences of a pair.

    Args:
        context: settings and design.
        layer: the layer's facts.
        base: counts of the base, None when not measured.
        tuned: counts of the tuned checkpoint.
        found: ``entropy_drop`` and ``load_cv_rise`` as the smooth functionals gave them.
        dead: dead experts of base and tuned.

    Returns:
        ``entropy_drop`` (nats), ``load_cv_rise`` (ratio) and ``dead_share_rise`` (share of all experts).
        Counts that agree in every document though the bytes differ show no variance and never pass.
    """
    if base is None or tuned is None or dead is None:
        return {key: undefined(NOT_MEASURED) for key in DROPS}
    same = bool(np.array_equal(_by_column(base.counts_CE), _by_column(tuned.counts_CE)))
    if same and all(is_exact(context, layer, key) for key in DROPS):
        return {key: exact_zero(context.base_windows, context.design.documents) for key in DROPS}
    rise = _dead_share_rise(context, base.counts_CE.shape[1], dead)
    if same:
        rise = Sample(rise.estimate, 0.0, rise.t_B, rise.windows, rise.documents, NO_VARIANCE)
    return {
        "entropy_drop": found["entropy_drop"],
        "load_cv_rise": found["load_cv_rise"],
        "dead_share_rise": rise,
    }


def _by_column(counts_CE: F64) -> F64:
    """The experts' counts in an order of their own: what is gated does not depend on how experts are numbered."""
    return counts_CE[:, np.lexsort(counts_CE)]


def _dead_share_rise(context: Context, experts: int, dead: tuple[Sample, Sample]) -> Sample:
    base, tuned = dead
    assert base.values_B is not None
    assert tuned.values_B is not None
    rise_B = (tuned.values_B - base.values_B) / experts
    return basic((tuned.estimate - base.estimate) / experts, rise_B, context.design, context.base_windows)
