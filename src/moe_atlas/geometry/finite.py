"""Tokens on which a checkpoint computes NaN or an infinity, whatever the audit measures there.

A quantity that is undefined or not measured at a token must not hide a non-finite computation. So these functions
check states, router values and expert outputs directly, on every token of every window.

Legend: T tokens, M measured tokens, R rows, D width, E experts, K top-k, P slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.geometry.fields.evaluation import EMPTY
from moe_atlas.geometry.fields.pair_fields import PairFields
from moe_atlas.geometry.fields.single_fields import NativeFields
from moe_atlas.replay.router import Routing


def broken_rows(values_RD: Tensor) -> Tensor:
    """Return which rows hold NaN or an infinity, bool [R].

    The sum of a row finds every suspect at a fraction of the cost of checking each value. The sum of large finite
    values may overflow, so the function checks each value of the suspect rows.
    """
    broken_R = ~torch.isfinite(values_RD.sum(-1, dtype=torch.float32))
    suspects = broken_R.nonzero().squeeze(1)
    if len(suspects):
        broken_R[suspects] = ~torch.isfinite(values_RD[suspects]).all(-1)
    return broken_R


def broken_routing(routing: Routing) -> Tensor:
    """Return the tokens with a non-finite logit, probability, dispatch score or combine weight, bool [T].

    A dispatch score of −inf marks a dropped group and is allowed.
    """
    broken_T = torch.isnan(routing.scores_TE).any(-1) | (routing.scores_TE == torch.inf).any(-1)
    for values in (routing.logits_TE, routing.probs_TE, routing.weights_TK):
        broken_T |= broken_rows(values)
    return broken_T


def broken_tokens(x_TD: Tensor, fields: NativeFields) -> Tensor:
    """Return the tokens with a non-finite state, router value or expert output at a checkpoint's own states, bool [T].

    Args:
        x_TD: the residual in front of the block.
        fields: the expert outputs of the checkpoint, after `add` of every expert.
    """
    broken_R, m = broken_rows(fields.rows_RD), fields.measured_M
    broken_T = broken_rows(x_TD) | broken_routing(fields.routing) | broken_R[fields.routed_TK].any(1)
    broken_T[m] |= broken_R[fields.place_MP].any(1)
    return broken_T


def broken_at_anchor(fields: PairFields, routing: Routing) -> tuple[Tensor, Tensor]:
    """Return the tokens on which each checkpoint is not finite at the base's canonical states, bool [T]: (base, tuned).

    Args:
        fields: the expert outputs of both checkpoints at these states.
        routing: the routing of the tuned checkpoint at these states.
    """
    base_T, tuned_T = torch.zeros_like(routing.ties_T), broken_routing(routing)
    evaluated_MP, m = fields.table_MP != EMPTY, fields.base.measured_M
    base_T[m] |= (evaluated_MP & ~torch.isfinite(fields.norm0_MP)).any(1)
    tuned_T[m] |= (evaluated_MP & ~torch.isfinite(fields.change_MP)).any(1)
    return base_T, tuned_T
