"""Changes of the routed experts between two checkpoints on one batch, at the base's canonical states.

Legend: T tokens of the batch, M measured tokens (every n-th of a window), P slots or rows, D model width, K top-k.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from moe_atlas.geometry.fields.chunking import gather_rows, map_chunks, row_norms
from moe_atlas.geometry.fields.evaluation import RowGroup, append_all, append_missing, distinct
from moe_atlas.geometry.fields.single_fields import NativeFields, Weights, expert_weights, slot_weights
from moe_atlas.geometry.fields.tangent import RATIO_EPS, TangentMap, relative_change
from moe_atlas.replay.model import GateInput
from moe_atlas.replay.router import Routing


class PairFields:
    """Content drift and perturbation budget of both checkpoints' experts at the base's canonical states.

    Args:
        base: expert outputs of the base at its own states.
        tuned: expert outputs of the tuned checkpoint at its own states.
        gate: gate coordinates of the tuned checkpoint at the base's canonical states.
        routing: routing of the tuned checkpoint at these states, in the base's expert numbering.
        tangent: P_z at the base's canonical states.
        native_tangent: P_z at the tuned checkpoint's own canonical states.
        everyone: whether to evaluate all experts.

    Attributes:
        table_MP: the evaluation set 𝓔 of each measured token, in the base's expert numbering: S0 in rank order,
            e_{k+1} of the base, then S1' and, with `everyone`, all other experts; a slot is empty if an earlier slot
            holds its expert.
        ratio_MP: relative change of the visible update (content drift), float64.
        ratio_native_MP: relative change between each checkpoint's own states (Eq. 28 as printed), float64.
        norm0_MP, change_MP: ‖v⁰‖ and ‖v¹−v⁰‖, float64.
        ratio_requantised_MP: relative change of the base's visible update when the base expert is stored in the tuned
            checkpoint's format, float64; None if both checkpoints use the same format.
        omega0_MP, omega1_MP: weights of the outputs in the routed sum at the anchor, float32.
        delta_MD: Σ ω¹u¹ − Σ ω⁰u⁰ of Eq. 15 with these weights, before P_z. The float32 terms are summed in float64, so
            the order of summation does not matter and processes can add their partial sums.
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
        table_MP = distinct(append_missing(base.table_MP[:, : k + 1], routing.topk_TK[m]))
        self.table_MP = append_all(table_MP, base.experts) if everyone else table_MP
        # The base evaluated S0 and e_{k+1} in this same grouping, so its rows serve again. All other experts are
        # evaluated anew in one grouping for both checkpoints, so equal experts give equal bits.
        self._groups = [
            base.routed,
            RowGroup(self.table_MP, slice(k + 1, self.table_MP.shape[1]), base.experts),
        ]
        self.omega0_MP = slot_weights(base.layer, base.routing, m, self.table_MP)
        self.omega1_MP = slot_weights(tuned.layer, routing, m, self.table_MP)
        self._weights1_TE = expert_weights(tuned.replay, tuned.layer, routing)
        self._weight_on_input = tuned.layer.routed.weight_on_input
        unknown = torch.full(self.table_MP.shape, torch.nan, dtype=torch.float64, device=self.table_MP.device)
        self.ratio_MP, self.ratio_native_MP = unknown, unknown.clone()
        self.norm0_MP, self.change_MP = unknown.clone(), unknown.clone()
        self.ratio_requantised_MP: Tensor | None = None
        self.delta_MD = torch.zeros(len(m), base.gate.g_TD.shape[1], dtype=torch.float64, device=m.device)

    def add(
        self,
        expert: int,
        tuned_expert: int,
        weights0: Weights,
        weights1: Weights,
        *,
        identical: bool = False,
        requantised: Weights | None = None,
    ) -> None:
        """Evaluate a base expert and its counterpart on every token that needs the pair.

        Args:
            expert: index of the base expert.
            tuned_expert: index of the counterpart in the tuned checkpoint.
            weights0: tensors of the base expert.
            weights1: tensors of the counterpart.
            identical: whether both hold the same values, so that equal inputs give equal outputs.
            requantised: tensors of the base expert after storage in the tuned checkpoint's format; None if this
                format loses nothing.
        """
        if requantised is not None and self.ratio_requantised_MP is None:
            self.ratio_requantised_MP = torch.full_like(self.ratio_MP, torch.nan)
        identical = identical and self.gate is self.base.gate
        for group in self._groups:
            part = group.slice_of(expert)
            if part.start == part.stop:
                continue
            tokens_M, slots = group.tokens_R[part], group.slots_R[part]
            tokens = self.base.measured_M[tokens_M]
            stored = group is self.base.routed
            u0_PD = self.base.rows_RD[part] if stored else self.base.evaluate(expert, weights0, tokens)
            u1_PD = self._anchored(expert, tokens, weights1, u0_PD, identical=identical)
            # Only the counterpart of the same index is certain to have its own rows already.
            native_PD = (
                self.tuned.rows(expert, tokens_M, weights1)
                if tuned_expert == expert
                else self.tuned.evaluate(tuned_expert, weights1, tokens)
            )
            record = partial(self._record, tokens_M, slots, u0_PD, u1_PD, native_PD)
            map_chunks(record, *u0_PD.shape, on=u0_PD.device)
            if requantised is not None:
                requantised_PD = self.base.evaluate(expert, requantised, tokens)
                self._record_requantised(tokens_M, slots, u0_PD, requantised_PD)

    def slots_of(self, experts: range) -> list[tuple[Tensor, Tensor]]:
        """Return the (tokens, slots) that belong to consecutive experts."""
        parts = [(group, group.slice_of_range(experts)) for group in self._groups]
        return [(group.tokens_R[part], group.slots_R[part]) for group, part in parts]

    def slot_values(self) -> list[Tensor]:
        """Return the arrays that hold a value per slot, [M, P] each."""
        values = [self.ratio_MP, self.ratio_native_MP, self.norm0_MP, self.change_MP]
        return values if self.ratio_requantised_MP is None else [*values, self.ratio_requantised_MP]

    def _anchored(
        self, expert: int, tokens: Tensor, weights1: Weights, u0_PD: Tensor, *, identical: bool
    ) -> Tensor:
        """Return u_e¹ at the base's canonical states, compute dtype [P, D]; the base's own rows if nothing differs."""
        gate1_P = self._weights1_TE[tokens, expert]
        if identical and (
            not self._weight_on_input or torch.equal(gate1_P, self.base.input_weights(expert, tokens))
        ):
            return u0_PD
        return self.tuned.replay.expert(self.tuned.layer, weights1, self.gate.g_TD, tokens, gate1_P)

    def _record_requantised(
        self, tokens_M: Tensor, slots: Tensor, u0_PD: Tensor, requantised_PD: Tensor
    ) -> None:
        """Store the relative change of some visible updates that the storage format alone causes."""

        def ratio(part: slice) -> Tensor:
            tangent = self.tangent.at(tokens_M[part])
            return relative_change(tangent(u0_PD[part]), tangent(requantised_PD[part]))[0]

        assert self.ratio_requantised_MP is not None, "`add` creates it"
        ratios = map_chunks(ratio, *requantised_PD.shape, on=requantised_PD.device)
        self.ratio_requantised_MP[tokens_M, slots] = torch.cat(ratios)

    def _record(
        self, tokens_M: Tensor, slots: Tensor, u0_PD: Tensor, u1_PD: Tensor, native_PD: Tensor, part: slice
    ) -> None:
        """Store the visible changes of some rows and add their terms of Eq. 15; every row has its own token."""
        tokens_M, slots = tokens_M[part], slots[part]
        u0_PD, u1_PD, native_PD = u0_PD[part], u1_PD[part], native_PD[part]
        at = (tokens_M, slots)
        u0_PD, u1_PD = u0_PD.float(), u1_PD.float()
        tangent = self.tangent.at(tokens_M)
        v0_PD = tangent(u0_PD)
        ratio_P, norm0_P, _, change_P = relative_change(v0_PD, tangent(u1_PD))
        self.ratio_MP[at], self.norm0_MP[at], self.change_MP[at] = ratio_P, norm0_P, change_P
        native_v_PD = self.native_tangent(native_PD, tokens_M)
        native_change_P = row_norms(native_v_PD - v0_PD)
        self.ratio_native_MP[at] = native_change_P / (row_norms(native_v_PD) + norm0_P + RATIO_EPS)
        # Both products are rounded before the subtraction, so equal terms cancel exactly.
        weighted1_PD = u1_PD * self.omega1_MP[at][:, None]
        terms_PD = weighted1_PD.sub_(u0_PD * self.omega0_MP[at][:, None])
        self.delta_MD.index_add_(0, tokens_M, terms_PD.double())

    def field_norms(self) -> tuple[Tensor, Tensor]:
        """Return ‖ΔV‖ and ‖V⁰‖ of Eq. 15 at the anchor, float64 [M]; call `add` of every expert first."""
        k, width = self.base.top_k, self.delta_MD.shape[1]

        def norms(p: slice) -> Tensor:
            tokens_M = torch.arange(p.start, p.stop, device=self.delta_MD.device)
            rows_MKD = gather_rows(self.base.rows_RD, self.base.place_MP[p, :k]).float()
            field0_MD = torch.bmm(self.omega0_MP[p, None, :k], rows_MKD).squeeze(1)
            tangent = self.tangent.at(tokens_M)
            return torch.stack([row_norms(tangent(field_MD)) for field_MD in (self.delta_MD[p], field0_MD)])

        parts = map_chunks(norms, len(self.delta_MD), width * (k + 1), on=self.delta_MD.device)
        change_M, norm0_M = torch.cat(parts, dim=1)
        return change_M, norm0_M
