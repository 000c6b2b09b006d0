"""Health of one checkpoint on one batch, at its own states: State1, State2 and the transition jump per token.

Legend: T tokens of the batch, M measured tokens, P slots, D model width, K top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.geometry.fields.chunking import gather_rows, map_chunks, row_norms
from moe_atlas.geometry.fields.evaluation import EMPTY
from moe_atlas.geometry.fields.single_fields import NativeFields, output_weights
from moe_atlas.geometry.fields.tangent import TangentMap
from moe_atlas.geometry.fields.undefined_values import mark_undefined
from moe_atlas.geometry.overlap import (
    compatibility,
    field_norm,
    log_gate_probability,
    overlap,
    swap_coefficients,
)
from moe_atlas.geometry.smooth import smooth_overlap
from moe_atlas.replay.router import Routing


def state1(routing: Routing) -> dict[str, Tensor]:
    """Return `set_margin` and `group_margin`, float64 [T]: last kept minus first dropped dispatch or group score."""
    values = {"set_margin": mark_undefined(routing.margin_T, routing.competitor_T != EMPTY)}
    if routing.group_margin_T is not None:
        values["group_margin"] = mark_undefined(routing.group_margin_T)
    return values


def state2(fields: NativeFields, tangent: TangentMap, adjacency: float | None) -> dict[str, Tensor]:
    """Return overlap, its specificity, transition jump and smooth overlap of the measured tokens, float64 [M].

    Args:
        fields: the expert outputs of the checkpoint, after `add` of every expert.
        tangent: P_z at the checkpoint's own canonical states of the measured tokens.
        adjacency: β_adj of the smooth overlap; None leaves the smooth overlap out.
    """
    m, slots = fields.place_MP.shape

    def values(p: slice) -> dict[str, Tensor]:
        part_M = torch.arange(p.start, p.stop, device=fields.place_MP.device)
        return _state2(fields, tangent, adjacency, part_M)

    chunks = map_chunks(values, m, slots * fields.rows_RD.shape[1], on=fields.rows_RD.device)
    return {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}


def _state2(
    fields: NativeFields, tangent: TangentMap, adjacency: float | None, part_M: Tensor
) -> dict[str, Tensor]:
    k, table_MP = fields.top_k, fields.table_MP[part_M]
    tokens = fields.measured_M[part_M]
    v_MPD = tangent(gather_rows(fields.rows_RD, fields.place_MP[part_M]), part_M)
    kappa_MPP = compatibility(v_MPD)
    log_probs_ME = log_gate_probability(fields.layer.routed.router, fields.routing.logits_TE[tokens])
    has_competitor_M, has_partner_M = table_MP[:, k] != EMPTY, table_MP[:, k + 1] != EMPTY
    overlap_M = overlap(kappa_MPP, log_probs_ME.gather(1, table_MP[:, :k]))
    values = {
        "overlap": mark_undefined(overlap_M, torch.full_like(has_partner_M, k > 1)),
        "overlap_specificity": mark_undefined(overlap_M - kappa_MPP[:, 0, k + 1], has_partner_M & (k > 1)),
    }
    values |= _jump(fields, v_MPD[:, : k + 1], tokens, table_MP, has_competitor_M)
    if adjacency is not None:
        member_MP = table_MP != EMPTY
        # The specificity partner is a reference, not a member of the health set, unless all experts are evaluated.
        member_MP[:, k + 1] = False
        if table_MP.shape[1] > k + 2:
            member_MP[:, k + 1] = has_partner_M
        ids_MP = table_MP.clamp_min(0)
        smooth_M = smooth_overlap(
            kappa_MPP,
            log_probs_ME.gather(1, ids_MP),
            fields.routing.scores_TE[tokens].gather(1, ids_MP),
            member_MP,
            adjacency,
        )
        values["smooth_overlap"] = mark_undefined(smooth_M, member_MP.sum(1) > 1)
    return values


def _jump(
    fields: NativeFields, v_MPD: Tensor, tokens: Tensor, table_MP: Tensor, defined_M: Tensor
) -> dict[str, Tensor]:
    """Return the exact one-swap change of the routed sum, the idealisation of Eq. 14, and ‖Σω_e v_e‖."""
    k, routing = fields.top_k, fields.routing
    swapped_MK = torch.cat([table_MP[:, : k - 1], table_MP[:, k : k + 1].clamp_min(0)], dim=1)
    weights_MK = output_weights(fields.layer, routing.weights_TK[tokens])
    combined_MK = fields.replay.combine(
        fields.layer, routing.logits_TE[tokens], swapped_MK, routing.expert_scale_E
    )
    swapped_weights_MK = output_weights(fields.layer, combined_MK)
    coefficients_MP = swap_coefficients(weights_MK, swapped_weights_MK)
    change_M = row_norms(v_MPD[:, k] - v_MPD[:, k - 1])
    return {
        "jump": mark_undefined(field_norm(v_MPD, coefficients_MP), defined_M),
        "jump_idealised": mark_undefined(weights_MK[:, k - 1].double() * change_M, defined_M),
        "field_norm": mark_undefined(field_norm(v_MPD[:, :k], weights_MK)),
    }
