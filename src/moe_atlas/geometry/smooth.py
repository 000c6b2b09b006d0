"""Smooth surrogates of the exact channels (Eq. 20–28), one value per token. No gate uses them.

Legend: T tokens, E experts, P evaluated experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_boundary(probs0_TE: Tensor, probs1_TE: Tensor) -> Tensor:
    """Return Eq. 27 corrected: ½‖ρ0−ρ1‖² / ½(‖ρ0‖²+‖ρ1‖²), float64 [T]; 0 for equal, 1 for disjoint distributions."""
    p_TE, q_TE = probs0_TE.double(), probs1_TE.double()
    return (p_TE - q_TE).square().sum(-1) / (p_TE.square().sum(-1) + q_TE.square().sum(-1))


def smooth_boundary_published(probs0_TE: Tensor, probs1_TE: Tensor) -> Tensor:
    """Return Eq. 27 as printed, at native states: 1 − Σ ρ0 ρ1, float64 [T]; not 0 for equal checkpoints."""
    return 1.0 - (probs0_TE.double() * probs1_TE.double()).sum(-1)


def smooth_content(ratio_TP: Tensor, weight_TP: Tensor, evaluated_TP: Tensor) -> tuple[Tensor, Tensor]:
    """Return Eq. 28 over the evaluation set, renormalised: (value, coverage = Σρ̄), float64 [T] each."""
    weight_TP = torch.where(evaluated_TP, weight_TP.double(), 0.0)
    coverage_T = weight_TP.sum(-1)
    ratio_TP = torch.where(evaluated_TP, ratio_TP, 0.0)
    return (weight_TP * ratio_TP).sum(-1) / coverage_T, coverage_T


def smooth_overlap(
    kappa_TPP: Tensor, log_probs_TP: Tensor, scores_TP: Tensor, member_TP: Tensor, beta: float
) -> Tensor:
    """Return Eq. 20–22 over a set of evaluated experts, float64 [T].

    Args:
        kappa_TPP: field compatibility of every pair.
        log_probs_TP: ln ρ of the members.
        scores_TP: dispatch scores a; a pair with a masked score (−inf) has weight 0.
        member_TP: bool, which slots hold a member of the set.
        beta: inverse temperature β_adj.
    """
    scores_TP = scores_TP.double()
    usable_TP = member_TP & torch.isfinite(scores_TP)
    scores_TP = torch.where(usable_TP, scores_TP, 0.0)
    log_TP = torch.where(usable_TP, log_probs_TP.double(), 0.0)
    gap_TPP = (scores_TP[:, :, None] - scores_TP[:, None, :]).abs()
    weight_TPP = log_TP[:, :, None] + log_TP[:, None, :] - beta * gap_TPP
    pair_TPP = usable_TP[:, :, None] & usable_TP[:, None, :]
    pair_TPP = pair_TPP & ~torch.eye(scores_TP.shape[1], dtype=torch.bool, device=scores_TP.device)
    weight_TPP = torch.where(pair_TPP, weight_TPP, -torch.inf)
    share_TPP = torch.softmax(weight_TPP.flatten(1), dim=-1).view_as(weight_TPP)
    return torch.where(pair_TPP, share_TPP * kappa_TPP, 0.0).sum((-1, -2))
