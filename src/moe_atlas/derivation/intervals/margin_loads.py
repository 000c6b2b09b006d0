"""The loads of each layer on the exact margins (Eq. 31-32), as smooth functionals of the windows.

Each margin is an extremum over layers of a load that contains a clip, max(0, u). A clip has no derivative at u = 0. So
each load is split into two smooth branches, one with 0 and one with u, and the margin is the extremum over layers and
branches. Every branch has its own standard error.

Legend: b boundary drift, c content drift, p = pi1/pi0 ratio of minimum shares, mu, lambda, tau as registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moe_atlas.derivation.intervals.context import Context, Facts
from moe_atlas.derivation.intervals.means import window_columns
from moe_atlas.derivation.intervals.occupancy import Occupancy
from moe_atlas.statistics.linearised import Linearised, ResampleBatch

REFINEMENT = ("load.drift", "load.drift_and_occupancy")
HANDOFF = ("deficit.overlap", "deficit.overlap_and_occupancy")
LOADS = (*REFINEMENT, *HANDOFF)

Health = Mapping[str, Mapping[str, Linearised]]
LoadFunctional = Callable[[ResampleBatch, Health], dict[str, Linearised]]


def load_functionals(
    context: Context, layer: Facts, occupancy: Mapping[str, Occupancy | None], reference: Facts | None
) -> LoadFunctional:
    """Return the function that gives a layer's loads on a batch of resamples.

    Refinement (Eq. 32): ``load.drift`` = mu1 b + mu2 c, the clipped branch, and ``load.drift_and_occupancy``
    = that + mu3 (1 - p), which is also the published load. Handoff (Eq. 31), with the sign turned so that
    larger is worse: ``deficit.overlap`` = -lambda1 (C2 - C2_ref) and ``deficit.overlap_and_occupancy`` =
    that - lambda2 (pi/pi_ref - 1). Loads that were not measured are missing.

    Args:
        context: settings and windows.
        layer: the layer's facts.
        occupancy: counts of the checkpoints.
        reference: the layer's ``overlap`` and ``min_share`` in a baseline receipt; None takes the base.
    """
    prefix = f"layers.{layer['layer']}"
    subject = "tuned" if context.is_pair else "base"
    boundary = window_columns(context, f"{prefix}.pair.boundary_drift")
    content = window_columns(context, f"{prefix}.pair.content_drift")
    overlap = {side: window_columns(context, f"{prefix}.{side}.overlap") for side in occupancy}
    refinement, handoff = context.rewrite("refinement"), context.rewrite("handoff")

    def functional(batch: ResampleBatch, health: Health) -> dict[str, Linearised]:
        out: dict[str, Linearised] = {}
        if refinement and boundary and content and health["base"] and health.get("tuned"):
            mu1, mu2, mu3 = (float(mu) for mu in refinement["mu"])
            drift = mu1 * batch.domain_mean(*boundary) + mu2 * batch.domain_mean(*content)
            lost = 1.0 - health["tuned"]["min_share"] / health["base"]["min_share"]
            out |= dict(zip(REFINEMENT, (drift, drift + mu3 * lost), strict=True))
        own = overlap[subject]
        fixed = _reference_values(reference)
        here = context.is_pair and overlap["base"] and health["base"]
        if handoff and own and health[subject] and (fixed or here):
            lambda1, lambda2 = (float(part) for part in handoff["lambda"])
            compatible, share = batch.domain_mean(*own), health[subject]["min_share"]
            if fixed:
                fall, ratio = fixed[0] - compatible, share / fixed[1]
            else:
                base = overlap["base"]
                assert base is not None
                fall, ratio = batch.domain_mean(*base) - compatible, share / health["base"]["min_share"]
            deficit = lambda1 * fall
            out |= dict(zip(HANDOFF, (deficit, deficit + lambda2 * (1.0 - ratio)), strict=True))
        return out

    return functional


def _reference_values(reference: Facts | None) -> tuple[float, float] | None:
    if reference is None:
        return None
    overlap: Any = reference.get("overlap")
    share: Any = reference.get("min_share")
    if not isinstance(overlap, (int, float)) or not isinstance(share, (int, float)) or share <= 0:
        return None
    return float(overlap), float(share)
