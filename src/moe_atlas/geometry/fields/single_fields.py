"""The routed experts of one checkpoint on one batch, at its own states.

The audit walks over the experts in ascending order and hands each one's weights to `NativeFields.add` and
`PairFields.add`; no other place evaluates an expert.

Legend: T tokens of the batch, M measured tokens (every n-th of a window), P slots, R rows, D model width, K top-k.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from moe_atlas.geometry.fields.evaluation import EMPTY, RowGroup, all_others
from moe_atlas.models.spec import LayerSpec
from moe_atlas.replay.model import GateInput, Replay
from moe_atlas.replay.router import Routing

Weights = dict[str, Tensor]


class NativeFields:
    """One checkpoint's experts at its own states.

    Rows are multiplied and kept in the order of their experts: first the routed experts and the competitor of the
    measured tokens, then whatever else is evaluated on them, then the routed experts of the other tokens.

    Attributes:
        table_MP: experts evaluated on the measured tokens: top-k in rank order, e_{k+1}, the specificity partner,
            and with `experts: all` everyone else.
        routed: the group of the first k + 1 slots.
        rows_RD: raw outputs u_e of every evaluated (token, expert), compute dtype; the last row is 0.
        place_MP: the row of each slot; that of an empty slot is the last one.
        routed_TK: the row of each routed expert of every token.
        follows: whether these are still another checkpoint's rows, see `follower`.
    """

    def __init__(
        self, replay: Replay, layer: LayerSpec, gate: GateInput, routing: Routing, measured_M: Tensor
    ) -> None:
        self.replay, self.layer, self.gate, self.routing = replay, layer, gate, routing
        self.measured_M = measured_M
        self._weights_TE = expert_weights(replay, layer, routing)
        self.experts, self.top_k = layer.routed.router.experts, layer.routed.router.top_k
        self.follows = False

    def keep(self, partner_M: Tensor, *, everyone: bool) -> None:
        """Decide what is evaluated on the measured tokens beside the routed experts."""
        k, m, topk_TK = self.top_k, self.measured_M, self.routing.topk_TK
        table_MP = torch.cat([topk_TK[m], self.routing.competitor_T[m, None], partner_M[:, None]], dim=1)
        self.table_MP = table_MP if not everyone else all_others(table_MP, self.experts)
        rest_T = torch.ones(len(topk_TK), dtype=torch.bool, device=topk_TK.device)
        rest_T[m] = False
        rest = rest_T.nonzero().squeeze(1)
        self.routed = RowGroup(self.table_MP, slice(0, k + 1), self.experts)
        others = RowGroup(self.table_MP, slice(k + 1, self.table_MP.shape[1]), self.experts)
        unmeasured = RowGroup(topk_TK[rest], slice(0, k), self.experts)
        self._groups = [
            (self.routed, m, 0),
            (others, m, self.routed.count),
            (unmeasured, rest, self.routed.count + others.count),
        ]
        self._arrange(rest)

    def _arrange(self, rest: Tensor) -> None:
        """Decide where every row is kept."""
        total = sum(group.count for group, _, _ in self._groups)
        g_TD = self.gate.g_TD
        self.rows_RD = g_TD.new_empty(total + 1, g_TD.shape[1])
        self.rows_RD[total] = 0
        places = [group.places(first, total) for group, _, first in self._groups]
        self.place_MP = torch.cat(places[:2], dim=1)
        self.routed_TK = torch.empty_like(self.routing.topk_TK)
        self.routed_TK[self.measured_M] = self.place_MP[:, : self.top_k]
        self.routed_TK[rest] = places[2]
        row_ME = torch.full((len(self.table_MP), self.experts + 1), -1, dtype=torch.int32, device=g_TD.device)
        columns_MP = self.table_MP.masked_fill(self.table_MP == EMPTY, self.experts)
        self._row_ME = row_ME.scatter_(1, columns_MP, self.place_MP.int())

    def follower(self) -> NativeFields:
        """The same rows for another checkpoint, which holds the same states and router.

        It shares what is evaluated here until an expert comes whose bytes differ; from there on it goes on alone, with
        the very values that it would have found itself.
        """
        other = copy(self)
        other.follows = True
        return other

    def add(self, expert: int, weights: Weights, *, identical: bool = False) -> None:
        """Evaluate `expert` on every token that needs it.

        Args:
            expert: its index; to a follower experts come before they come to whom it follows.
            weights: its tensors.
            identical: whether the followed checkpoint's expert holds the same values.
        """
        if self.follows:
            if identical:
                return
            self.part()
        for group, tokens_M, first in self._groups:
            part = group.part(expert)
            if part.start < part.stop:
                tokens_P = tokens_M[group.tokens_R[part]]
                kept = slice(first + part.start, first + part.stop)
                self.rows_RD[kept] = self.evaluate(expert, weights, tokens_P)

    def part(self) -> None:
        """Go on alone, if these were another checkpoint's rows until now."""
        if self.follows:
            self.follows = False
            self.rows_RD = self.rows_RD.clone()

    def parts(self, experts: range) -> list[slice]:
        """Which of the kept rows are those of consecutive experts."""
        spans = [(first, group.span(experts)) for group, _, first in self._groups]
        return [slice(first + span.start, first + span.stop) for first, span in spans]

    def rows(self, expert: int, tokens_P: Tensor, weights: Weights) -> Tensor:
        """u_e of `expert` on measured tokens: kept rows where there are any, evaluated where not; [P, D]."""
        row_P = self._row_ME[tokens_P, expert].long()
        u_PD = self.rows_RD.index_select(0, row_P.clamp_min(0))
        missing = (row_P < 0).nonzero().squeeze(1)
        if len(missing):
            u_PD[missing] = self.evaluate(expert, weights, self.measured_M[tokens_P[missing]])
        return u_PD

    def evaluate(self, expert: int, weights: Weights, tokens_P: Tensor) -> Tensor:
        """u_e of `expert` at this checkpoint's own states of any tokens of the batch, compute dtype [P, D]."""
        omega_P = self.input_weights(expert, tokens_P)
        return self.replay.expert(self.layer, weights, self.gate.g_TD, tokens_P, omega_P)

    def input_weights(self, expert: int, tokens_P: Tensor) -> Tensor:
        """Gate weight that `expert` is evaluated with on these tokens, float32 [P]; see `expert_weights`."""
        return self._weights_TE[tokens_P, expert]

    def routed_sum(self) -> Tensor:
        """What the model itself adds up, compute dtype [T, D], for every token; every expert must have passed."""
        ids_TK, order_TK = self.routing.topk_TK.sort(dim=1)
        return self.replay.weighted_sum(
            self.layer, self.rows_RD, self.routed_TK.gather(1, order_TK), self._weights_TE.gather(1, ids_TK)
        )


def expert_weights(replay: Replay, layer: LayerSpec, routing: Routing) -> Tensor:
    """Gate weight that each expert is evaluated with, float32 [T, E]: ω on the routed set, 0 elsewhere.

    Where experts are weighted on their input, an expert that is not routed is evaluated with the weight that it
    would have if it were; at weight 0 it would say nothing.
    """
    weights_TE = torch.zeros_like(routing.probs_TE)
    if layer.routed.weight_on_input:
        everyone_TE = torch.arange(weights_TE.shape[1], device=weights_TE.device).expand_as(weights_TE)
        weights_TE = replay.combine(layer, routing.logits_TE, everyone_TE, routing.expert_scale_E)
    return weights_TE.scatter(1, routing.topk_TK, routing.weights_TK)


def output_weights(layer: LayerSpec, weights_TK: Tensor) -> Tensor:
    """What multiplies the expert outputs in the routed sum: ω, or 1 where the input was weighted already."""
    return torch.ones_like(weights_TK) if layer.routed.weight_on_input else weights_TK


def slot_weights(layer: LayerSpec, routing: Routing, measured_M: Tensor, table_MP: Tensor) -> Tensor:
    """Weight of each slot's expert in the routed sum, 0 where it is not routed, float32 [M, P]."""
    weights_TE = torch.zeros_like(routing.probs_TE)
    weights_TE.scatter_add_(1, routing.topk_TK, output_weights(layer, routing.weights_TK))
    weights_MP = weights_TE[measured_M].gather(1, table_MP.clamp_min(0))
    return weights_MP.masked_fill(table_MP == EMPTY, 0.0)
