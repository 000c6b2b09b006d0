"""State2: compatibility of co-active experts, and the jump when the boundary expert is swapped.

Legend: T tokens, D model width, K top-k, P evaluated experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.geometry.fields.chunking import length
from moe_atlas.geometry.fields.tangent import KAPPA_EPS
from moe_atlas.models.spec import RouterSpec


def compatibility(v_TPD: Tensor) -> Tensor:
    """Stabilised field compatibility κ of every pair of experts of a token (Eq. 20), float64 [T, P, P].

    Inner products are added up in the dtype of the fields.
    """
    gram_TPP = torch.bmm(v_TPD, v_TPD.transpose(1, 2)).double()
    norm_TP = gram_TPP.diagonal(dim1=1, dim2=2).sqrt()
    return gram_TPP / (norm_TP[:, :, None] * norm_TP[:, None, :] + KAPPA_EPS)


def log_gate_probability(router: RouterSpec, logits_TE: Tensor) -> Tensor:
    """Log gate probability ln ρ, float64 [T, E], without forming ρ: a confident router would underflow."""
    logits_TE = logits_TE.double()
    if router.score == "softmax":
        return torch.log_softmax(logits_TE, dim=-1)
    log_TE = log_score(router, logits_TE)
    return log_TE - torch.logsumexp(log_TE, dim=-1, keepdim=True)


def log_score(router: RouterSpec, logits_TE: Tensor) -> Tensor:
    """Logarithm of an expert's own score, float64 [T, E]."""
    if router.score == "sigmoid":
        return torch.nn.functional.logsigmoid(logits_TE)
    # ½ ln ln(1 + eˣ), and eˣ is far below the last bit of 1 where the inner logarithm would underflow
    small_TE = logits_TE < -40
    return 0.5 * torch.where(small_TE, logits_TE, torch.nn.functional.softplus(logits_TE).log())


def overlap(kappa_TPP: Tensor, log_probs_TK: Tensor) -> Tensor:
    """Exact co-active overlap (the C2 of Eq. 31), float64 [T], an absolute level in −1..1.

    κ of the pairs adjacent in dispatch-score rank, (e_1,e_2) … (e_{k−1},e_k), weighted by ρ_e ρ_e' normalised
    over those pairs, in log space so that a confident router does not underflow. NaN for k = 1.

    Args:
        kappa_TPP: compatibilities whose first K slots are the top-k set in rank order.
        log_probs_TK: ln ρ of the top-k set in the same order.
    """
    k = log_probs_TK.shape[1]
    if k < 2:
        return torch.full(log_probs_TK.shape[:1], torch.nan, dtype=torch.float64, device=kappa_TPP.device)
    adjacent_TK = torch.stack([kappa_TPP[:, i, i + 1] for i in range(k - 1)], dim=1)
    log_TK = log_probs_TK.double()
    share_TK = torch.softmax(log_TK[:, :-1] + log_TK[:, 1:], dim=-1)
    return (share_TK * adjacent_TK).sum(-1)


def swap_coefficients(weights_TK: Tensor, swapped_weights_TK: Tensor) -> Tensor:
    """What each of e_1 … e_k, e_{k+1} adds to the routed sum when e_k is swapped for e_{k+1}, float64 [T, K+1].

    Args:
        weights_TK: combine weights ω of the top-k set.
        swapped_weights_TK: the model's own combine rule applied to the swapped set, e_{k+1} in the last slot.
    """
    before_TK, after_TK = weights_TK.double(), swapped_weights_TK.double()
    kept_TK = after_TK[:, :-1] - before_TK[:, :-1]
    return torch.cat([kept_TK, -before_TK[:, -1:], after_TK[:, -1:]], dim=1)


def field_norm(v_TPD: Tensor, coefficients_TP: Tensor) -> Tensor:
    """‖Σ c_e v_e‖, float64 [T]; the sum is added up in the dtype of the fields."""
    field_TD = torch.bmm(coefficients_TP.to(v_TPD.dtype)[:, None], v_TPD).squeeze(1)
    return length(field_TD)
