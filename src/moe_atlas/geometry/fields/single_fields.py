"""Outputs of the routed experts of one checkpoint on one batch, at its own states.

The audit passes the weights of each expert, in ascending order, to `NativeFields.add` and `PairFields.add`. Only these
two classes evaluate experts.

Legend: T tokens of the batch, M measured tokens (every n-th of a window), P slots or rows, R rows, D model width, E
experts, K top-k.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_atlas.geometry.fields.evaluation import EMPTY, RowGroup, append_all
from moe_atlas.models.spec import LayerSpec
from moe_atlas.replay.model import GateInput, Replay
from moe_atlas.replay.router import Routing

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class _Section:
    """Consecutive output rows.

    Attributes:
        group: the rows in expert order.
        tokens: the token of the batch behind each token number of the group, int64.
        first: number of the first output row.
    """

    group: RowGroup
    tokens: Tensor
    first: int


class NativeFields:
    """Outputs of one checkpoint's experts at its own states.

    The output rows form three sections, each in expert order: the routed experts and the competitor of the measured
    tokens; the other experts evaluated on the measured tokens; the routed experts of all other tokens.

    Args:
        replay: the forward pass of the checkpoint.
        layer: the routed layer.
        gate: gate coordinates of the batch.
        routing: routing of the batch.
        measured_M: indices of the measured tokens, int64.
        partner_M: specificity partner of each measured token, int64; −1 if there is none.
        everyone: whether to evaluate all experts on the measured tokens.

    Attributes:
        table_MP: experts evaluated on the measured tokens: top-k in rank order, e_{k+1}, the specificity partner,
            and with `everyone` all other experts.
        routed: the rows of the first k + 1 slots of `table_MP`.
        rows_RD: raw outputs u_e of every evaluated (token, expert), compute dtype; the last row is 0.
        place_MP: the row of each slot; an empty slot has the last row.
        routed_TK: the row of each routed expert of every token.
        shares_rows: whether the rows still belong to another checkpoint; see `shared_copy`.
    """

    def __init__(
        self,
        replay: Replay,
        layer: LayerSpec,
        gate: GateInput,
        routing: Routing,
        measured_M: Tensor,
        partner_M: Tensor,
        *,
        everyone: bool,
    ) -> None:
        self.replay, self.layer, self.gate, self.routing = replay, layer, gate, routing
        self.measured_M = measured_M
        self._weights_TE = expert_weights(replay, layer, routing)
        self.experts, self.top_k = layer.routed.router.experts, layer.routed.router.top_k
        self.shares_rows = False
        m, topk_TK = measured_M, routing.topk_TK
        table_MP = torch.cat([topk_TK[m], routing.competitor_T[m, None], partner_M[:, None]], dim=1)
        self.table_MP = append_all(table_MP, self.experts) if everyone else table_MP
        rest_T = torch.ones(len(topk_TK), dtype=torch.bool, device=topk_TK.device)
        rest_T[m] = False
        self._arrange(rest_T.nonzero().squeeze(1))

    def _arrange(self, rest: Tensor) -> None:
        """Assign a row to every evaluated (token, expert); `rest` holds the tokens that are not measured."""
        k, table_MP = self.top_k, self.table_MP
        self.routed = RowGroup(table_MP, slice(0, k + 1), self.experts)
        others = RowGroup(table_MP, slice(k + 1, table_MP.shape[1]), self.experts)
        unmeasured = RowGroup(self.routing.topk_TK[rest], slice(0, k), self.experts)
        self._sections = [
            _Section(self.routed, self.measured_M, 0),
            _Section(others, self.measured_M, self.routed.count),
            _Section(unmeasured, rest, self.routed.count + others.count),
        ]
        total = sum(section.group.count for section in self._sections)
        self.rows_RD = self.gate.g_TD.new_empty(total + 1, self.gate.g_TD.shape[1])
        self.rows_RD[total] = 0
        self._index_rows(rest, [section.group.places(section.first, total) for section in self._sections])

    def _index_rows(self, rest: Tensor, places: list[Tensor]) -> None:
        """Set the row numbers by slot, by routed expert and by expert from each section's row numbers."""
        self.place_MP = torch.cat(places[:2], dim=1)
        self.routed_TK = torch.empty_like(self.routing.topk_TK)
        self.routed_TK[self.measured_M] = self.place_MP[:, : self.top_k]
        self.routed_TK[rest] = places[2]
        shape = (len(self.table_MP), self.experts + 1)
        row_ME = torch.full(shape, -1, dtype=torch.int32, device=self.table_MP.device)
        columns_MP = self.table_MP.masked_fill(self.table_MP == EMPTY, self.experts)
        self._row_ME = row_ME.scatter_(1, columns_MP, self.place_MP.int())

    def shared_copy(self) -> NativeFields:
        """Return the fields of another checkpoint that has the same states and router, sharing these rows.

        The copy shares rows until `add` receives an expert with other values. From then on the copy owns its rows. The
        rows shared so far have the values that the copy would have computed itself.
        """
        other = copy(self)
        other.shares_rows = True
        return other

    def add(self, expert: int, weights: Weights, *, identical: bool = False) -> None:
        """Evaluate `expert` on every token that needs it.

        Args:
            expert: the expert's index. Call `add` of a shared copy before `add` of its original.
            weights: the expert's tensors.
            identical: whether the original's expert holds the same values; only a shared copy uses this.
        """
        if self.shares_rows:
            if identical:
                return
            self.stop_sharing()
        for section in self._sections:
            part = section.group.slice_of(expert)
            if part.start < part.stop:
                tokens_P = section.tokens[section.group.tokens_R[part]]
                rows = slice(section.first + part.start, section.first + part.stop)
                self.rows_RD[rows] = self.evaluate(expert, weights, tokens_P)

    def stop_sharing(self) -> None:
        """Copy the rows if they still belong to another checkpoint."""
        if self.shares_rows:
            self.shares_rows = False
            self.rows_RD = self.rows_RD.clone()

    def rows_of(self, experts: range) -> list[slice]:
        """Return the slices of `rows_RD` that belong to consecutive experts."""
        parts = [(section.first, section.group.slice_of_range(experts)) for section in self._sections]
        return [slice(first + part.start, first + part.stop) for first, part in parts]

    def rows(self, expert: int, tokens_P: Tensor, weights: Weights) -> Tensor:
        """Return u_e of `expert` on measured tokens, [P, D]: stored rows, or newly evaluated rows where none exist."""
        row_P = self._row_ME[tokens_P, expert].long()
        u_PD = self.rows_RD.index_select(0, row_P.clamp_min(0))
        missing = (row_P < 0).nonzero().squeeze(1)
        if len(missing):
            u_PD[missing] = self.evaluate(expert, weights, self.measured_M[tokens_P[missing]])
        return u_PD

    def evaluate(self, expert: int, weights: Weights, tokens_P: Tensor) -> Tensor:
        """Return u_e of `expert` at this checkpoint's own states, for any tokens of the batch, compute dtype [P, D]."""
        omega_P = self.input_weights(expert, tokens_P)
        return self.replay.expert(self.layer, weights, self.gate.g_TD, tokens_P, omega_P)

    def input_weights(self, expert: int, tokens_P: Tensor) -> Tensor:
        """Return the gate weight with which to evaluate `expert` on these tokens, float32 [P]; see `expert_weights`."""
        return self._weights_TE[tokens_P, expert]

    def routed_sum(self) -> Tensor:
        """Return the model's routed sum of every token, compute dtype [T, D]; call `add` of every expert first."""
        ids_TK, order_TK = self.routing.topk_TK.sort(dim=1)
        return self.replay.weighted_sum(
            self.layer, self.rows_RD, self.routed_TK.gather(1, order_TK), self._weights_TE.gather(1, ids_TK)
        )


def expert_weights(replay: Replay, layer: LayerSpec, routing: Routing) -> Tensor:
    """Return the gate weight with which to evaluate each expert, float32 [T, E]: ω on the routed set, 0 elsewhere.

    If the family weights the input, an unrouted expert gets the weight that it would have if it were routed, because
    weight 0 would give no information.
    """
    weights_TE = torch.zeros_like(routing.probs_TE)
    if layer.routed.weight_on_input:
        all_TE = torch.arange(weights_TE.shape[1], device=weights_TE.device).expand_as(weights_TE)
        weights_TE = replay.combine(layer, routing.logits_TE, all_TE, routing.expert_scale_E)
    return weights_TE.scatter(1, routing.topk_TK, routing.weights_TK)


def output_weights(layer: LayerSpec, weights_TK: Tensor) -> Tensor:
    """Return the factors of the expert outputs in the routed sum: ω, or 1 if the family weights the input."""
    return torch.ones_like(weights_TK) if layer.routed.weight_on_input else weights_TK


def slot_weights(layer: LayerSpec, routing: Routing, measured_M: Tensor, table_MP: Tensor) -> Tensor:
    """Return the weight of each slot's expert in the routed sum, float32 [M, P]; 0 if the expert is not routed."""
    weights_TE = torch.zeros_like(routing.probs_TE)
    weights_TE.scatter_add_(1, routing.topk_TK, output_weights(layer, routing.weights_TK))
    weights_MP = weights_TE[measured_M].gather(1, table_MP.clamp_min(0))
    return weights_MP.masked_fill(table_MP == EMPTY, 0.0)
