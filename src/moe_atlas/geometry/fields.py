"""The routed experts of one layer on one batch: each checkpoint at its own states, and the pair at the anchor.

The audit walks over the experts in ascending order and hands each one's weights to `NativeFields.add` and
`PairFields.add`; no other place evaluates an expert.

Legend: T tokens of the batch, M measured tokens (every n-th of a window), P slots, D model width, K top-k.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from moe_atlas.families.spec import LayerSpec
from moe_atlas.geometry.evaluation import EMPTY, RowGroup, all_others, join
from moe_atlas.geometry.tangent import TangentMap, relative_change
from moe_atlas.replay.model import GateInput, Replay
from moe_atlas.replay.router import Routing

Weights = dict[str, Tensor]
PIECE = 128  # rows compared at a time, so that they stay in the cache


class NativeFields:
    """One checkpoint's experts at its own states.

    Attributes:
        routed_TD: the routed sum the model itself adds, compute dtype, for every token.
        table_MP: experts evaluated on the measured tokens: top-k in rank order, e_{k+1}, the specificity partner,
            and with `experts: all` everyone else.
        rows_MPD: their raw outputs u_e, compute dtype; rows of empty slots are 0.
        follows: whether these are still another checkpoint's rows, see `follower`.
    """

    def __init__(
        self, replay: Replay, layer: LayerSpec, gate: GateInput, routing: Routing, measured_M: Tensor
    ) -> None:
        self.replay, self.layer, self.gate, self.routing = replay, layer, gate, routing
        self.measured_M = measured_M
        self.routed_TD = replay.empty_sum(layer, gate.g_TD)
        self.table_MP = torch.empty(0, 0, dtype=torch.int64)
        self._kept: list[RowGroup] = []
        self._weights_TE = expert_weights(replay, layer, routing)
        assert layer.moe is not None
        self.experts = layer.moe.router.experts
        self.top_k = layer.moe.router.top_k
        rest_T = torch.ones(len(gate.g_TD), dtype=torch.bool, device=gate.g_TD.device)
        rest_T[measured_M] = False
        self._rest_T = rest_T.nonzero().squeeze(1)
        self._unmeasured = RowGroup(routing.topk_TK[self._rest_T], slice(0, self.top_k), self.experts)
        self.follows = False

    def follower(self) -> NativeFields:
        """The same rows for another checkpoint, which holds the same states and router.

        It shares what is evaluated here until an expert comes whose bytes differ; from there on it goes on alone, with
        the very values that it would have found itself.
        """
        other = copy(self)
        other.follows = True
        return other

    def keep(self, partner_M: Tensor, *, everyone: bool) -> None:
        """Decide what is evaluated on the measured tokens beside the routed experts."""
        k, m = self.top_k, self.measured_M
        table_MP = torch.cat(
            [self.routing.topk_TK[m], self.routing.competitor_T[m, None], partner_M[:, None]], dim=1
        )
        groups = [slice(0, k), slice(k, k + 1), slice(k + 1, k + 2)]
        if everyone:
            table_MP = all_others(table_MP, self.experts)
            groups.append(slice(k + 2, table_MP.shape[1]))
        self.table_MP = table_MP
        self._kept = [RowGroup(table_MP, slots, self.experts) for slots in groups]
        width = self.gate.g_TD.shape[1]
        self.rows_MPD = self.gate.g_TD.new_zeros(*table_MP.shape, width)

    def add(self, expert: int, weights: Weights, *, identical: bool = False) -> None:
        """Evaluate `expert` on every token that needs it.

        Args:
            expert: its index; experts come in rising order, and to a follower before they come to whom it follows.
            weights: its tensors.
            identical: whether the followed checkpoint's expert holds the same bytes.
        """
        if self.follows:
            if identical:
                return
            self.follows = False
            self.routed_TD, self.rows_MPD = self.routed_TD.clone(), self.rows_MPD.clone()
        tokens, _ = self._unmeasured.rows(expert)
        if len(tokens):
            tokens = self._rest_T[tokens]
            self._accumulate(expert, tokens, self.evaluate(expert, weights, tokens))
        for number, group in enumerate(self._kept):
            tokens_M, slots = group.rows(expert)
            if not len(tokens_M):
                continue
            tokens = self.measured_M[tokens_M]
            u_PD = self.evaluate(expert, weights, tokens)
            self.rows_MPD[tokens_M, slots] = u_PD
            if number == 0:
                self._accumulate(expert, tokens, u_PD)

    def rows(self, expert: int, tokens_P: Tensor, weights: Weights) -> Tensor:
        """u_e of `expert` on measured tokens: kept rows where there are any, evaluated where not; [P, D]."""
        match_PP = self.table_MP[tokens_P] == expert
        found_P = match_PP.any(1)
        u_PD = self.rows_MPD[tokens_P, match_PP.int().argmax(1)]
        missing = (~found_P).nonzero().squeeze(1)
        if len(missing):
            u_PD[missing] = self.evaluate(expert, weights, self.measured_M[tokens_P[missing]])
        return u_PD

    def evaluate(self, expert: int, weights: Weights, tokens_P: Tensor) -> Tensor:
        """u_e of `expert` at this checkpoint's own states of any tokens of the batch, compute dtype [P, D]."""
        omega_P = self.input_weights(expert, tokens_P)
        return self.replay.expert(self.layer, weights, self.gate.g_TD[tokens_P], omega_P)

    def input_weights(self, expert: int, tokens_P: Tensor) -> Tensor:
        """Gate weight that `expert` is evaluated with on these tokens, float32 [P]; see `expert_weights`."""
        return self._weights_TE[tokens_P, expert]

    def _accumulate(self, expert: int, tokens_P: Tensor, u_PD: Tensor) -> None:
        omega_P = self._weights_TE[tokens_P, expert]
        self.replay.accumulate(self.layer, self.routed_TD, tokens_P, u_PD, omega_P)


def pieces(count: int) -> list[slice]:
    """Slices of `PIECE` rows."""
    return [slice(begin, begin + PIECE) for begin in range(0, count, PIECE)]


def expert_weights(replay: Replay, layer: LayerSpec, routing: Routing) -> Tensor:
    """Gate weight that each expert is evaluated with, float32 [T, E]: ω on the routed set, 0 elsewhere.

    Where experts are weighted on their input, an expert that is not routed is evaluated with the weight that it
    would have if it were; at weight 0 it would say nothing.
    """
    assert layer.moe is not None
    weights_TE = torch.zeros_like(routing.probs_TE)
    if layer.moe.weight_on_input:
        everyone_TE = torch.arange(weights_TE.shape[1], device=weights_TE.device).expand_as(weights_TE)
        weights_TE = replay.combine(layer, routing.logits_TE, everyone_TE)
    return weights_TE.scatter(1, routing.topk_TK, routing.weights_TK)


def output_weights(layer: LayerSpec, weights_TK: Tensor) -> Tensor:
    """What multiplies the expert outputs in the routed sum: ω, or 1 where the input was weighted already."""
    assert layer.moe is not None
    return torch.ones_like(weights_TK) if layer.moe.weight_on_input else weights_TK


def slot_weights(layer: LayerSpec, routing: Routing, measured_M: Tensor, table_MP: Tensor) -> Tensor:
    """Weight of each slot's expert in the routed sum, 0 where it is not routed, float32 [M, P]."""
    weights_TE = torch.zeros_like(routing.probs_TE)
    weights_TE.scatter_(1, routing.topk_TK, output_weights(layer, routing.weights_TK))
    weights_MP = weights_TE[measured_M].gather(1, table_MP.clamp_min(0))
    return weights_MP.masked_fill(table_MP == EMPTY, 0.0)


class PairFields:
    """Both checkpoints' experts at the base's canonical state: content drift and the perturbation budget.

    Attributes:
        table_MP: the evaluation set 𝓔 of each measured token, in the base's expert numbering: S0 in rank order,
            e_{k+1} of the base, then S1' and, with `experts: all`, everyone else (empty where already present).
        ratio_MP: relative change of the visible update (content drift), float64.
        ratio_native_MP: the same at each checkpoint's own state (Eq. 28 as printed).
        norm0_MP, change_MP: ‖v⁰‖ and ‖v¹−v⁰‖, float64.
        ratio_requantised_MP: relative change that the tuned checkpoint's format alone makes of the base's visible
            update, float64; None where both checkpoints are stored alike.
        omega0_MP, omega1_MP: weights of the outputs in the routed sum at the anchor, float32.
        delta_MD, field0_MD: ΔV and V⁰ of Eq. 15 with those weights, float32.
    """

    def __init__(
        self,
        base: NativeFields,
        tuned: NativeFields,
        gate: GateInput,
        routing: Routing,
        tangent: TangentMap,
        native_tangent: TangentMap,
        *,
        everyone: bool,
    ) -> None:
        self.base, self.tuned, self.gate = base, tuned, gate
        self.tangent, self.native_tangent = tangent, native_tangent
        m, k = base.measured_M, base.top_k
        own_MP = base.table_MP[:, : k + 1]
        table_MP = join(own_MP, routing.topk_TK[m])
        groups = [slice(0, k), slice(k, k + 1), slice(k + 1, 2 * k + 1)]
        if everyone:
            table_MP = all_others(table_MP, base.experts)
            groups.append(slice(2 * k + 1, table_MP.shape[1]))
        self.table_MP = table_MP
        self._groups = [RowGroup(table_MP, slots, base.experts) for slots in groups]
        self.omega0_MP = slot_weights(base.layer, base.routing, m, table_MP)
        self.omega1_MP = slot_weights(tuned.layer, routing, m, table_MP)
        self._weights1_TE = expert_weights(tuned.replay, tuned.layer, routing)
        self._weighs_input = tuned.layer.moe is not None and tuned.layer.moe.weight_on_input
        self.ratio_MP = torch.full(table_MP.shape, torch.nan, dtype=torch.float64, device=table_MP.device)
        self.ratio_native_MP, self.norm0_MP = self.ratio_MP.clone(), self.ratio_MP.clone()
        self.change_MP = self.ratio_MP.clone()
        self.ratio_requantised_MP: Tensor | None = None
        self._base_rows: dict[int, Tensor] = {}
        self.delta_MD = torch.zeros(len(m), base.gate.g_TD.shape[1], device=table_MP.device)
        self.field0_MD = torch.zeros_like(self.delta_MD)

    def add(
        self, expert: int, tuned_expert: int, weights0: Weights, weights1: Weights, *, identical: bool = False
    ) -> None:
        """Evaluate base expert `expert` and its counterpart on every token that needs the pair.

        Args:
            expert: the base's index.
            tuned_expert: the counterpart's index.
            weights0: tensors of the one.
            weights1: tensors of the other.
            identical: whether the two hold the same bytes, so that equal inputs give equal outputs.
        """
        identical = identical and self.gate is self.base.gate
        for number, group in enumerate(self._groups):
            tokens_M, slots = group.rows(expert)
            if not len(tokens_M):
                continue
            tokens = self.base.measured_M[tokens_M]
            omega0_P, omega1_P = self.omega0_MP[tokens_M, slots], self.omega1_MP[tokens_M, slots]
            # S0 and e_{k+1} were evaluated for the base's own health in this very grouping; the others are not
            # taken from kept rows, so that equal experts give equal bits.
            u0_PD = (
                self.base.rows_MPD[tokens_M, slots]
                if number < 2
                else self.base.evaluate(expert, weights0, tokens)
            )
            self._base_rows[number] = u0_PD
            u1_PD = self._anchored(expert, tokens, weights1, u0_PD, identical=identical)
            native_PD = self.tuned.rows(tuned_expert, tokens_M, weights1)
            for p in pieces(len(tokens_M)):
                self._record(
                    tokens_M[p], slots[p], u0_PD[p], u1_PD[p], native_PD[p], omega0_P[p], omega1_P[p]
                )

    def _anchored(
        self, expert: int, tokens: Tensor, weights1: Weights, u0_PD: Tensor, *, identical: bool
    ) -> Tensor:
        """u_e¹ at the base's canonical states, compute dtype [P, D]; the base's own rows where nothing differs."""
        gate1_P = self._weights1_TE[tokens, expert]
        if identical and (
            not self._weighs_input or torch.equal(gate1_P, self.base.input_weights(expert, tokens))
        ):
            return u0_PD
        return self.tuned.replay.expert(self.tuned.layer, weights1, self.gate.g_TD[tokens], gate1_P)

    def add_requantised(self, expert: int, weights: Weights) -> None:
        """Evaluate base expert `expert` once more, as another format would keep it, at the base's own state."""
        if self.ratio_requantised_MP is None:
            self.ratio_requantised_MP = torch.full_like(self.ratio_MP, torch.nan)
        for number, group in enumerate(self._groups):
            tokens_M, slots = group.rows(expert)
            if not len(tokens_M):
                continue
            kept_PD = self.base.evaluate(expert, weights, self.base.measured_M[tokens_M])
            for p in pieces(len(tokens_M)):
                v0_PD = self.tangent(self._base_rows[number][p], tokens_M[p])
                self.ratio_requantised_MP[tokens_M[p], slots[p]] = relative_change(
                    v0_PD, self.tangent(kept_PD[p], tokens_M[p])
                )[0]

    def _record(
        self,
        tokens_M: Tensor,
        slots: Tensor,
        u0_PD: Tensor,
        u1_PD: Tensor,
        native_PD: Tensor,
        omega0_P: Tensor,
        omega1_P: Tensor,
    ) -> None:
        v0_PD, v1_PD = self.tangent(u0_PD, tokens_M), self.tangent(u1_PD, tokens_M)
        ratio_P, norm0_P, _, change_P = relative_change(v0_PD, v1_PD)
        self.ratio_MP[tokens_M, slots] = ratio_P
        self.norm0_MP[tokens_M, slots] = norm0_P
        self.change_MP[tokens_M, slots] = change_P
        native_v_PD = self.native_tangent(native_PD, tokens_M)
        self.ratio_native_MP[tokens_M, slots] = relative_change(v0_PD, native_v_PD)[0]
        weighted0_PD = omega0_P[:, None] * v0_PD
        self.field0_MD.index_add_(0, tokens_M, weighted0_PD)
        self.delta_MD.index_add_(0, tokens_M, omega1_P[:, None] * v1_PD - weighted0_PD)
