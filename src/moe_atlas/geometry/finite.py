"""Which tokens a checkpoint leaves the finite numbers on, whatever is measured there.

A quantity that is undefined at a token, or not measured at it, must not hide that the checkpoint computed NaN or an
infinity. So states, router and expert outputs are looked at themselves, on every token of every window.

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
    """Which rows hold NaN or an infinity, bool [R].

    One sum finds every suspect, and costs a fraction of looking at each value; a sum of large finite values may
    overflow, so suspects are looked at themselves.
    """
    broken_R = ~torch.isfinite(values_RD.sum(-1, dtype=torch.float32))
    suspects = broken_R.nonzero().squeeze(1)
    if len(suspects):
        broken_R[suspects] = ~torch.isfinite(values_RD[suspects]).all(-1)
    return broken_R


def broken_routing(routing: Routing) -> Tensor:
    """Which tokens the router has no finite logits, probabilities or weights for, bool [T].

    A dispatch score may be −inf, which is how a dropped group is masked; any other one must be finite.
    """
    broken_T = torch.isnan(routing.scores_TE).any(-1) | (routing.scores_TE == torch.inf).any(-1)
    for values in (routing.logits_TE, routing.probs_TE, routing.weights_TK):
        broken_T |= broken_rows(values)
    return broken_T


def broken_tokens(x_TD: Tensor, fields: NativeFields) -> Tensor:
    """Which tokens a checkpoint breaks at one layer at its own states, bool [T]: state, router, expert outputs.

    Args:
        x_TD: the residual in front of the block.
        fields: the evaluated experts; every expert must have passed.
    """
    broken_R, m = broken_rows(fields.rows_RD), fields.measured_M
    broken_T = broken_rows(x_TD) | broken_routing(fields.routing) | broken_R[fields.routed_TK].any(1)
    broken_T[m] |= broken_R[fields.place_MP].any(1)
    return broken_T


def broken_at_anchor(fields: PairFields, routing: Routing) -> tuple[Tensor, Tensor]:
    """Which tokens each checkpoint breaks at the base's canonical states, bool [T]: (base, tuned).

    Args:
        fields: both checkpoints' experts there.
        routing: of the tuned checkpoint there.
    """
    base_T, tuned_T = torch.zeros_like(routing.ties_T), broken_routing(routing)
    evaluated_MP, m = fields.table_MP != EMPTY, fields.base.measured_M
    base_T[m] |= (evaluated_MP & ~torch.isfinite(fields.norm0_MP)).any(1)
    tuned_T[m] |= (evaluated_MP & ~torch.isfinite(fields.change_MP)).any(1)
    return base_T, tuned_T
