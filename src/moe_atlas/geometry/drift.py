"""The drift channels of a pair (section 5 of the paper), one value per token.

Legend: T tokens, D model width, E experts, K top-k, P evaluated experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.geometry.fields.chunking import map_chunks, row_norms

TINY = torch.finfo(torch.float32).tiny


def coordinate_drift(state0_TD: Tensor, state1_TD: Tensor) -> Tensor:
    """Return ½‖ŝ⁰ − ŝ¹‖² = 1 − cos(s⁰, s¹), float64 [T], 0..2; exactly 0 for equal states.

    The states are float32. The squared difference of unit vectors is accurate to about 1e-14; 1 − cos is not. A zero
    state has no direction, so its unit vector is zero: its drift is 0 against another zero state and ½ against any
    other state.
    """

    def drift(p: slice) -> Tensor:
        unit0_TD, unit1_TD = (
            torch.nn.functional.normalize(state_TD[p].float(), dim=-1, eps=TINY)
            for state_TD in (state0_TD, state1_TD)
        )
        return 0.5 * row_norms(unit0_TD - unit1_TD).square()

    return torch.cat(map_chunks(drift, *state0_TD.shape, on=state0_TD.device))


def kept_members(ids0_TK: Tensor, ids1_TK: Tensor) -> Tensor:
    """Return which members of the first top-k sets the second sets hold, bool [T, K].

    If a table names an expert twice in the first set, the second set has to name it twice as well to hold both.
    """
    there_TK = (ids0_TK[:, :, None] == ids1_TK[:, None, :]).sum(-1)
    before_TK = (ids0_TK[:, :, None] == ids0_TK[:, None, :]).tril(-1).sum(-1)
    return there_TK > before_TK


def shared_members(ids0_TK: Tensor, ids1_TK: Tensor) -> Tensor:
    """Return how many experts two top-k sets have in common, int64 [T]; one that a table names twice counts twice."""
    return kept_members(ids0_TK, ids1_TK).sum(-1)


def replaced_members(ids0_TK: Tensor, ids1_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many members of each set are replaced, int64 [T], and the lost and gained experts, int64 [M] each.

    Both sets of a token have K members, so a token loses as many as it gains. The n-th lost expert by the rank of the
    first set is paired with the n-th gained expert by the rank of the second set.
    """
    lost_TK, gained_TK = ~kept_members(ids0_TK, ids1_TK), ~kept_members(ids1_TK, ids0_TK)
    return lost_TK.sum(-1), ids0_TK[lost_TK], ids1_TK[gained_TK]


def boundary_drift(ids0_TK: Tensor, ids1_TK: Tensor) -> Tensor:
    """Return 1 − |S0 ∩ S1|/k, float64 [T], 0..1."""
    return 1.0 - shared_members(ids0_TK, ids1_TK).double() / ids0_TK.shape[1]


def transition_drift(probs0_TE: Tensor, probs1_TE: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence of two gate distributions, nats, float64 [T], 0..ln 2."""
    p_TE, q_TE = probs0_TE.double(), probs1_TE.double()
    middle_TE = 0.5 * (p_TE + q_TE)
    divergence_T = _relative_entropy(p_TE, middle_TE) + _relative_entropy(q_TE, middle_TE)
    return (0.5 * divergence_T).clamp_min(0.0)  # rounding may leave -1e-17


def _relative_entropy(p_TE: Tensor, q_TE: Tensor) -> Tensor:
    terms_TE = torch.special.xlogy(p_TE, p_TE / q_TE)
    return torch.where(p_TE > 0, terms_TE, torch.where(p_TE == 0, 0.0, p_TE)).sum(-1)


def content_drift(ratio_TP: Tensor, evaluated_TP: Tensor, quantile: float) -> Tensor:
    """Return a quantile over experts of the relative change of the visible update, float64 [T], 0..1.

    The result is infinite where the change of any evaluated expert is not finite, because a quantile must not hide a
    broken expert.

    Args:
        ratio_TP: relative changes, float64.
        evaluated_TP: bool, which slots hold a member of the evaluation set.
        quantile: q of the definition, with linear interpolation.
    """
    broken_T = (evaluated_TP & ~torch.isfinite(ratio_TP)).any(1)
    drift_T = torch.where(evaluated_TP, ratio_TP, torch.nan).nanquantile(quantile, dim=1)
    return torch.where(broken_T, torch.inf, drift_T)


def flips(
    changed_T: Tensor, margin_T: Tensor, group_margin_T: Tensor | None, delta: float, group_delta: float
) -> tuple[Tensor, Tensor]:
    """Split changes of the anchored set by the noise band: return (inside, outside), bool [T] each.

    A change is inside the band if the base margin is at most 2δ or, where the router drops groups, if the base group
    margin is at most 2δ_g. Only changes outside the band are evidence of a rewrite.
    """
    in_band_T = (
        margin_T <= 2.0 * delta
    )  # a NaN margin (no competitor) is outside: noise cannot explain the change
    if group_margin_T is not None:
        in_band_T = in_band_T | (group_margin_T <= 2.0 * group_delta)
    return changed_T & in_band_T, changed_T & ~in_band_T
