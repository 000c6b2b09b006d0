"""Channels of a pair of checkpoints on one batch of one layer, one value per token.

Legend: W windows, T tokens of the batch, M measured tokens, D model width, E experts, K top-k, P slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_atlas.geometry import drift, smooth
from moe_atlas.geometry.fields.chunking import map_chunks, row_norms
from moe_atlas.geometry.fields.evaluation import EMPTY, contains, renumbered
from moe_atlas.geometry.fields.pair_fields import PairFields
from moe_atlas.geometry.fields.undefined_values import mark_undefined
from moe_atlas.replay.model import GateInput
from moe_atlas.replay.router import Routing


@dataclass(frozen=True)
class NoiseBand:
    """The noise band of one layer, from a noise-floor run; both widths are 0 without such a run.

    Attributes:
        delta: δ = max |Δa|, the largest change of a dispatch score.
        group_delta: δ_g, the largest change of a group score.
    """

    delta: float = 0.0
    group_delta: float = 0.0


def coordinate_channels(gate0: GateInput, gate1: GateInput) -> dict[str, Tensor]:
    """Return the native coordinate drift of g (as published) and of z (used by the gate), float64 [T]."""
    values = {"coordinate_drift": mark_undefined(drift.coordinate_drift(gate0.router_TD, gate1.router_TD))}
    if gate0.z_TD is not None and gate1.z_TD is not None:
        values["coordinate_drift_z"] = mark_undefined(drift.coordinate_drift(gate0.z_TD, gate1.z_TD))
    return values


def routing_channels(base: Routing, anchored: Routing, tuned: Routing, band: NoiseBand) -> dict[str, Tensor]:
    """Return boundary, transition and smooth boundary drift, and the flips, float64 [T] (flips are 0 or 1).

    Args:
        base: routing of θ0 at its own states (g^{0→0}).
        anchored: routing of θ1 at the base's canonical states (g^{0→1}), in the base's expert numbering.
        tuned: routing of θ1 at its own states, in the base's expert numbering.
        band: the noise band of this layer.
    """
    boundary_T = drift.boundary_drift(base.topk_TK, anchored.topk_TK)
    inside_T, outside_T = drift.flips(
        boundary_T > 0, base.margin_T, base.group_margin_T, band.delta, band.group_delta
    )
    return {
        "boundary_drift": mark_undefined(boundary_T),
        "native_boundary_drift": mark_undefined(drift.boundary_drift(base.topk_TK, tuned.topk_TK)),
        "transition_drift": mark_undefined(drift.transition_drift(base.probs_TE, anchored.probs_TE)),
        "smooth_boundary": mark_undefined(smooth.smooth_boundary(base.probs_TE, anchored.probs_TE)),
        "smooth_boundary_published": mark_undefined(
            smooth.smooth_boundary_published(base.probs_TE, tuned.probs_TE)
        ),
        "flips.changed": (inside_T | outside_T).double(),
        "flips.inside": inside_T.double(),
        "flips.outside": outside_T.double(),
    }


def content_channels(
    fields: PairFields, base: Routing, anchored: Routing, tuned: Routing, quantile: float
) -> dict[str, Tensor]:
    """Return content drift, its smooth surrogate and the perturbation budget (Eq. 15), float64 [M]."""
    evaluated_MP = fields.table_MP != EMPTY
    ids_MP, m = fields.table_MP.clamp_min(0), fields.base.measured_M
    rho0_MP = base.probs_TE[m].gather(1, ids_MP)
    anchored_rho_MP = 0.5 * (rho0_MP + anchored.probs_TE[m].gather(1, ids_MP))
    native_rho_MP = 0.5 * (rho0_MP + tuned.probs_TE[m].gather(1, ids_MP))
    content_M, coverage_M = smooth.smooth_content(fields.ratio_MP, anchored_rho_MP, evaluated_MP)
    published_M, native_coverage_M = smooth.smooth_content(
        fields.ratio_native_MP, native_rho_MP, evaluated_MP
    )
    values = {
        "content_drift": drift.content_drift(fields.ratio_MP, evaluated_MP, quantile),
        "smooth_content_coverage": coverage_M,
    }
    if fields.ratio_requantised_MP is not None:
        values["content_quantisation"] = drift.content_drift(
            fields.ratio_requantised_MP, evaluated_MP, quantile
        )
    values |= perturbation_budget(fields, evaluated_MP)
    return {key: mark_undefined(value) for key, value in values.items()} | {
        # If all weights are 0, the mean is undefined; the checkpoint is not at fault.
        "smooth_content": mark_undefined(content_M, coverage_M != 0),
        "smooth_content_published": mark_undefined(published_M, native_coverage_M != 0),
    }


def expert_changes(
    fields: PairFields, anchored: Routing, windows: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return the sum and count of relative changes of each expert over the tokens that use it.

    A token uses the experts of S0 ∪ S1'. The audit evaluates the runner-up of S0, but the token does not use it.

    Returns:
        Sums of the relative changes, float64 [W, E], infinite where a change is not finite; token counts, int32 [W, E].
    """
    k, experts = fields.base.top_k, fields.base.experts
    used_MP = contains(anchored.topk_TK[fields.base.measured_M], fields.table_MP)
    used_MP[:, :k] = True
    used_MP &= fields.table_MP != EMPTY
    window_M = torch.arange(len(used_MP)) // max(1, len(used_MP) // windows)
    cell_MP = window_M[:, None] * experts + fields.table_MP.cpu()
    chosen_MP = used_MP.cpu()
    # Summation in sequence on the CPU keeps the order, and so the last bit, always the same.
    cells = cell_MP[chosen_MP].numpy()
    ratios = mark_undefined(fields.ratio_MP.cpu()[chosen_MP]).numpy()
    sums_WE = np.bincount(cells, ratios, windows * experts).reshape(windows, experts)
    counts_WE = np.bincount(cells, minlength=windows * experts).reshape(windows, experts)
    return sums_WE.astype(np.float64), counts_WE.astype(np.int32)


def perturbation_budget(fields: PairFields, evaluated_MP: Tensor) -> dict[str, Tensor]:
    """Return Eq. 15 at the anchor with ω as weights: ‖ΔV‖, its two bounding terms, and ‖V⁰‖, float64 [M]."""
    omega0_MP, omega1_MP = fields.omega0_MP.double(), fields.omega1_MP.double()
    router_MP = (omega1_MP - omega0_MP).abs() * fields.norm0_MP
    content_MP = omega1_MP * fields.change_MP
    router_M = torch.where(evaluated_MP, router_MP, 0.0).sum(1)
    content_M = torch.where(evaluated_MP, content_MP, 0.0).sum(1)
    change_M, norm0_M = fields.field_norms()
    return {
        "perturbation_budget.actual": change_M,
        "perturbation_budget.router_term": router_M,
        "perturbation_budget.content_term": content_M,
        "perturbation_budget.bound": router_M + content_M,
        "perturbation_budget.base_norm": norm0_M,
    }


def controls(x0_TD: Tensor, x1_TD: Tensor) -> dict[str, Tensor]:
    """Return the raw-norm controls for falsification, float64 [T]: |‖x¹‖−‖x⁰‖|/‖x⁰‖ and ‖x¹−x⁰‖/‖x⁰‖."""

    def norms(p: slice) -> Tensor:
        piece0_TD, piece1_TD = x0_TD[p].float(), x1_TD[p].float()
        return torch.stack([row_norms(x) for x in (piece0_TD, piece1_TD, piece1_TD - piece0_TD)])

    norm0_T, norm1_T, change_T = torch.cat(map_chunks(norms, *x0_TD.shape, on=x0_TD.device), dim=1)
    defined_T = norm0_T != 0
    return {
        "raw_norm_drift": mark_undefined((norm1_T - norm0_T).abs() / norm0_T, defined_T),
        "raw_state_drift": mark_undefined(change_T / norm0_T, defined_T),
    }


def relabelled(routing: Routing, match_E: Tensor) -> Routing:
    """Return `routing` in another expert numbering: expert e of the result is expert `match_E[e]` of the input."""
    match_E = match_E.to(routing.topk_TK.device)
    inverse_E = torch.argsort(match_E)
    return Routing(
        logits_TE=routing.logits_TE[:, match_E],
        probs_TE=routing.probs_TE[:, match_E],
        scores_TE=routing.scores_TE[:, match_E],
        topk_TK=inverse_E[routing.topk_TK],
        competitor_T=renumbered(routing.competitor_T, inverse_E),
        weights_TK=routing.weights_TK,
        margin_T=routing.margin_T,
        ties_T=routing.ties_T,
        group_scores_TG=routing.group_scores_TG,
        group_margin_T=routing.group_margin_T,
        expert_scale_E=None if routing.expert_scale_E is None else routing.expert_scale_E[match_E],
    )
