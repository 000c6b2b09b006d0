"""The router: dispatch scores, exact top-k set, margins and combine weights, as pure functions.

Legend: T tokens, D model width, E experts, K top-k, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_atlas.models.spec import RouterSpec

SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: torch.softmax(x, dim=-1),
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
}
"""Score functions by name."""


@dataclass
class Routing:
    """All that one router decides for T tokens. Floating-point values are float32, indices int64."""

    logits_TE: Tensor
    """Router output, linear bias included."""
    probs_TE: Tensor
    """Full gate probability ρ: softmax(logits), or s(logits) / Σs(logits); without selection bias and mask."""
    scores_TE: Tensor
    """Dispatch score: the values from which top-k selects; −inf in dropped groups. Where the set is looked
    up, the score that orders and weighs it."""
    topk_TK: Tensor
    """The routed set by descending dispatch score; equal scores by ascending index."""
    competitor_T: Tensor
    """Best unselected, unmasked expert; −1 if there is none."""
    weights_TK: Tensor
    """Combine weights ω in the order of `topk_TK`."""
    margin_T: Tensor
    """Dispatch score of the last selected expert minus that of the competitor; NaN without competitor."""
    ties_T: Tensor
    """Whether `margin_T` is exactly 0."""
    group_scores_TG: Tensor | None
    """Group scores, in the units of the dispatch score; None if the router never drops a group."""
    group_margin_T: Tensor | None
    """Score of the last kept group minus that of the first dropped group; None if the router never drops a group."""
    expert_scale_E: Tensor | None
    """Learned factor of each expert on its combine weight; None if the router has none."""


def route(
    router: RouterSpec,
    weight_ED: Tensor,
    x_TD: Tensor,
    *,
    bias_E: Tensor | None = None,
    selection_bias_E: Tensor | None = None,
    expert_scale_E: Tensor | None = None,
    sets_TK: Tensor | None = None,
    native: bool = False,
) -> Routing:
    """Route every token.

    Args:
        router: the spec.
        weight_ED: router matrix, any floating-point dtype.
        x_TD: the router's input; with `native`, its dtype is the activation dtype.
        bias_E: bias of the router's linear map, if the spec has one.
        selection_bias_E: bias of the dispatch score, if the spec has one.
        expert_scale_E: factor of each expert on its combine weight, if the spec has one.
        sets_TK: the set of every token, if the spec looks it up; None if the scores decide.
        native: round wherever the reference implementation rounds; otherwise compute everything in float32.
    """
    dtype = x_TD.dtype if native else torch.float32
    logits_TE = router_logits(router, weight_ED, x_TD, bias_E, native=native)
    dispatch_TE = logits_TE
    if router.dispatch == "scores":
        dispatch_TE = router_scores(router, logits_TE, dtype)
    if selection_bias_E is not None:
        rounded = native and router.selection_bias_dtype == "native"
        dispatch_TE = dispatch_TE + (selection_bias_E.to(dtype) if rounded else selection_bias_E).float()
    group_scores_TG, group_margin_T, masked_TE = limit_groups(router, dispatch_TE)
    if sets_TK is None:
        topk_TK, competitor_T, margin_T = select(masked_TE, router.top_k)
    else:
        topk_TK, competitor_T, margin_T = ranked(masked_TE, sets_TK)
    return Routing(
        logits_TE=logits_TE,
        probs_TE=gate_probability(router, logits_TE),
        scores_TE=masked_TE,
        topk_TK=topk_TK,
        competitor_T=competitor_T,
        weights_TK=combine_weights(router, logits_TE, topk_TK, dtype, expert_scale_E),
        margin_T=margin_T,
        ties_T=margin_T == 0,
        group_scores_TG=group_scores_TG,
        group_margin_T=group_margin_T,
        expert_scale_E=expert_scale_E,
    )


def router_logits(
    router: RouterSpec, weight_ED: Tensor, x_TD: Tensor, bias_E: Tensor | None, *, native: bool
) -> Tensor:
    """Return the router's logits in float32, computed in float32 or in the activation dtype."""
    dtype = x_TD.dtype if native and router.matmul == "native" else torch.float32
    bias = None if bias_E is None else bias_E.to(dtype)
    return F.linear(x_TD.to(dtype), weight_ED.to(dtype), bias).float()


def router_scores(router: RouterSpec, logits_TE: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the scores of the logits in float32, evaluated in `dtype` if the family does so."""
    x_TE = logits_TE.to(dtype) if router.probabilities == "native" else logits_TE
    return SCORES[router.score](x_TE).float()


def gate_probability(router: RouterSpec, logits_TE: Tensor) -> Tensor:
    """Return the full gate probability ρ over all experts, float32; every row sums to 1."""
    if router.score == "softmax":
        return torch.softmax(logits_TE, dim=-1)
    scores_TE = SCORES[router.score](logits_TE)
    return scores_TE / scores_TE.sum(-1, keepdim=True)


def limit_groups(router: RouterSpec, dispatch_TE: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Return group scores, group margin, and the dispatch scores with dropped groups at −inf."""
    if router.group_score == "none" or router.kept_groups >= router.groups:
        return None, None, dispatch_TE
    grouped_TGE = dispatch_TE.view(len(dispatch_TE), router.groups, -1)
    best = grouped_TGE.topk(2 if router.group_score == "top2_sum" else 1, dim=-1).values
    scores_TG = best.sum(-1)
    order_TG = scores_TG.argsort(dim=-1, descending=True, stable=True)
    ranked_TG = scores_TG.gather(-1, order_TG)
    margin_T = ranked_TG[:, router.kept_groups - 1] - ranked_TG[:, router.kept_groups]
    dropped_TG = torch.zeros_like(scores_TG, dtype=torch.bool)
    dropped_TG.scatter_(-1, order_TG[:, router.kept_groups :], value=True)
    masked_TE = grouped_TGE.masked_fill(dropped_TG[..., None], float("-inf")).flatten(-2)
    return scores_TG, margin_T, masked_TE


def select(scores_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return top-k set, best competitor and set margin; of equal scores, the lower index wins."""
    order_TE = scores_TE.argsort(dim=-1, descending=True, stable=True)
    topk_TK = order_TE[:, :top_k]
    if scores_TE.shape[-1] == top_k:
        nothing = torch.full_like(topk_TK[:, 0], -1)
        return topk_TK, nothing, torch.full_like(scores_TE[:, 0], float("nan"))
    rival_T = order_TE[:, top_k]
    last, best = (scores_TE.gather(-1, i[:, None])[:, 0] for i in (topk_TK[:, -1], rival_T))
    masked = best == float("-inf")
    return topk_TK, rival_T.masked_fill(masked, -1), (last - best).masked_fill(masked, float("nan"))


def ranked(scores_TE: Tensor, sets_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Order given sets by falling score, then by index; no expert competes with them, so margins are NaN."""
    rising_TK = sets_TK.long().sort(dim=-1).values
    order_TK = scores_TE.gather(-1, rising_TK).argsort(dim=-1, descending=True, stable=True)
    nothing_T = torch.full_like(rising_TK[:, 0], -1)
    return rising_TK.gather(-1, order_TK), nothing_T, torch.full_like(scores_TE[:, 0], float("nan"))


def combine_weights(
    router: RouterSpec,
    logits_TE: Tensor,
    ids_TK: Tensor,
    dtype: torch.dtype = torch.float32,
    expert_scale_E: Tensor | None = None,
) -> Tensor:
    """Apply the family's combine rule to any given set of experts; return weights, float32 [T, K].

    Args:
        router: the spec.
        logits_TE: router logits, float32.
        ids_TK: the set; in descending dispatch score if the rule depends on the order.
        dtype: activation dtype, to round where the family rounds; float32 rounds nowhere.
        expert_scale_E: learned factor of each expert, if the spec has one.
    """
    work = dtype if router.probabilities == "native" else torch.float32
    chosen_TK = logits_TE.gather(-1, ids_TK)
    if router.combine == "scores":
        weights_TK = router_scores(router, logits_TE, dtype).gather(-1, ids_TK)
    elif router.combine == "sparsemixer":
        weights_TK = sparsemixer(logits_TE.to(work), ids_TK, router.jitter)
    else:
        x_TK = chosen_TK.to(work)
        weights_TK = (
            torch.softmax(x_TK, -1) if router.combine == "softmax_of_chosen" else x_TK.sigmoid()
        ).float()
    weights_TK = weights_TK.to(work)
    if router.renormalise:
        total = weights_TK.sum(-1, keepdim=True) + router.epsilon
        weights_TK = weights_TK / total.clamp_min(router.floor)
    weights_TK = (weights_TK * router.scale).float()
    if expert_scale_E is not None:
        weights_TK = weights_TK * expert_scale_E.to(dtype).float()[ids_TK]
    return weights_TK.to(dtype).float() if router.weight_dtype == "native" else weights_TK


def sparsemixer(logits_TE: Tensor, ids_TK: Tensor, jitter: float) -> Tensor:
    """Return the weights of sparsemixer in evaluation: a softmax of each choice among the experts inside its band.

    The weights need not sum to 1. The softmax of the second choice leaves out the first choice.
    """
    weights = []
    open_TE = logits_TE
    for position in range(ids_TK.shape[-1]):
        chosen = ids_TK[:, position : position + 1]
        top = logits_TE.gather(-1, chosen)
        far = (top - logits_TE) / torch.maximum(logits_TE.abs(), top) > 2 * jitter
        weights.append(torch.softmax(open_TE.masked_fill(far, float("-inf")), -1).gather(-1, chosen))
        open_TE = open_TE.scatter(-1, chosen, float("-inf"))
    return torch.cat(weights, dim=-1)
