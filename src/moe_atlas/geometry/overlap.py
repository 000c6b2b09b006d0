"""State2: compatibility of co-active experts, and the jump when the boundary expert is swapped.

Legend: T tokens, D model width, K top-k, P evaluated experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.geometry.fields.chunking import row_norms
from moe_atlas.geometry.fields.tangent import KAPPA_EPS
from moe_atlas.models.spec import RouterSpec


def compatibility(v_TPD: Tensor) -> Tensor:
    """Return the stabilised field compatibility κ of every pair of experts of a token (Eq. 20), float64 [T, P, P].

    The dtype of the fields is the dtype in which inner products are summed.
    """
    gram_TPP = torch.bmm(v_TPD, v_TPD.transpose(1, 2)).double()
    norm_TP = gram_TPP.diagonal(dim1=1, dim2=2).sqrt()
    return gram_TPP / (norm_TP[:, :, None] * norm_TP[:, None, :] + KAPPA_EPS)


def log_gate_probability(router: RouterSpec, logits_TE: Tensor) -> Tensor:
    """Return ln ρ, float64 [T, E], without computing ρ, which would underflow for a confident router."""
    logits_TE = logits_TE.double()
    if router.score == "softmax":
        return torch.log_softmax(logits_TE, dim=-1)
    log_TE = log_score(router, logits_TE)
    return log_TE - torch.logsumexp(log_TE, dim=-1, keepdim=True)


def log_score(router: RouterSpec, logits_TE: Tensor) -> Tensor:
    """Return the logarithm of each expert's score, float64 [T, E]."""
    if router.score == "sigmoid":
        return torch.nn.functional.logsigmoid(logits_TE)
    # ½ ln ln(1 + eˣ). Below −40, ln(1 + eˣ) equals eˣ to the last bit, and the inner logarithm could underflow.
    small_TE = logits_TE < -40
    return 0.5 * torch.where(small_TE, logits_TE, torch.nn.functional.softplus(logits_TE).log())


def overlap(kappa_TPP: Tensor, log_probs_TK: Tensor) -> Tensor:
    """Return the exact co-active overlap (the C2 of Eq. 31), float64 [T], an absolute level in −1..1; NaN for k = 1.

    The overlap is the weighted mean of κ over the pairs adjacent in dispatch-score rank, (e_1,e_2) … (e_{k−1},e_k).
    The weights are ρ_e ρ_e', normalised over these pairs in log space, so a confident router does not underflow.

    Args:
        kappa_TPP: compatibilities; the first K slots are the top-k set in rank order.
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
    """Return the change of the weights of e_1 … e_k, e_{k+1} when e_{k+1} replaces e_k, float64 [T, K+1].

    Args:
        weights_TK: combine weights ω of the top-k set.
        swapped_weights_TK: weights of the model's combine rule for the swapped set, with e_{k+1} in the last slot.
    """
    before_TK, after_TK = weights_TK.double(), swapped_weights_TK.double()
    kept_TK = after_TK[:, :-1] - before_TK[:, :-1]
    return torch.cat([kept_TK, -before_TK[:, -1:], after_TK[:, -1:]], dim=1)


def field_norm(v_TPD: Tensor, coefficients_TP: Tensor) -> Tensor:
    """Return ‖Σ c_e v_e‖, float64 [T]; the sum has the dtype of the fields."""
    field_TD = torch.bmm(coefficients_TP.to(v_TPD.dtype)[:, None], v_TPD).squeeze(1)
    return row_norms(field_TD)
