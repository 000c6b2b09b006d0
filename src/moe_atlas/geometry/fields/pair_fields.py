"""The routed experts of both checkpoints on one batch, at the base's canonical states.

Legend: T tokens of the batch, M measured tokens (every n-th of a window), P slots or rows, D model width, K top-k.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from moe_atlas.geometry.fields.chunking import chosen, each, length
from moe_atlas.geometry.fields.evaluation import RowGroup, all_others, distinct, join
from moe_atlas.geometry.fields.single_fields import NativeFields, Weights, expert_weights, slot_weights
from moe_atlas.geometry.fields.tangent import RATIO_EPS, TangentMap, relative_change
from moe_atlas.replay.model import GateInput
from moe_atlas.replay.router import Routing


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
        delta_MD: Σ ω¹u¹ − Σ ω⁰u⁰ of Eq. 15 with those weights, before P_z. The terms are float32 and added up in
            float64, where their order does not show, so that processes can add up what each of them has.
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
        table_MP = distinct(join(base.table_MP[:, : k + 1], routing.topk_TK[m]))
        self.table_MP = all_others(table_MP, base.experts) if everyone else table_MP
        # S0 and e_{k+1} were evaluated for the base's own health in this very grouping. The others are not taken
        # from kept rows, so that equal experts give equal bits.
        self._groups = [
            base.routed,
            RowGroup(self.table_MP, slice(k + 1, self.table_MP.shape[1]), base.experts),
        ]
        self.omega0_MP = slot_weights(base.layer, base.routing, m, self.table_MP)
        self.omega1_MP = slot_weights(tuned.layer, routing, m, self.table_MP)
        self._weights1_TE = expert_weights(tuned.replay, tuned.layer, routing)
        self._weighs_input = tuned.layer.routed.weight_on_input
        unknown = torch.full(self.table_MP.shape, torch.nan, dtype=torch.float64, device=self.table_MP.device)
        self.ratio_MP, self.ratio_native_MP = unknown, unknown.clone()
        self.norm0_MP, self.change_MP = unknown.clone(), unknown.clone()
        self.ratio_requantised_MP: Tensor | None = None
        self._base_rows: dict[int, Tensor] = {}
        self.delta_MD = torch.zeros(len(m), base.gate.g_TD.shape[1], dtype=torch.float64, device=m.device)

    def add(
        self, expert: int, tuned_expert: int, weights0: Weights, weights1: Weights, *, identical: bool = False
    ) -> None:
        """Evaluate base expert `expert` and its counterpart on every token that needs the pair.

        Args:
            expert: the base's index.
            tuned_expert: the counterpart's index.
            weights0: tensors of the one.
            weights1: tensors of the other.
            identical: whether the two hold the same values, so that equal inputs give equal outputs.
        """
        identical = identical and self.gate is self.base.gate
        for number, group in enumerate(self._groups):
            part = group.part(expert)
            if part.start == part.stop:
                continue
            tokens_M, slots = group.tokens_R[part], group.slots_R[part]
            tokens = self.base.measured_M[tokens_M]
            u0_PD = self.base.rows_RD[part] if number == 0 else self.base.evaluate(expert, weights0, tokens)
            self._base_rows[number] = u0_PD
            u1_PD = self._anchored(expert, tokens, weights1, u0_PD, identical=identical)
            # Rows are kept from the same expert's own turn; another one's may be still to come.
            native_PD = (
                self.tuned.rows(expert, tokens_M, weights1)
                if tuned_expert == expert
                else self.tuned.evaluate(tuned_expert, weights1, tokens)
            )
            record = partial(self._record, tokens_M, slots, u0_PD, u1_PD, native_PD)
            each(record, *u0_PD.shape, on=u0_PD.device)

    def parts(self, experts: range) -> list[tuple[Tensor, Tensor]]:
        """Which (tokens, slots) are those of consecutive experts."""
        spans = [(group, group.span(experts)) for group in self._groups]
        return [(group.tokens_R[span], group.slots_R[span]) for group, span in spans]

    def entries(self) -> list[Tensor]:
        """What is measured slot by slot, [M, P] each."""
        found = [self.ratio_MP, self.ratio_native_MP, self.norm0_MP, self.change_MP]
        return found if self.ratio_requantised_MP is None else [*found, self.ratio_requantised_MP]

    def _anchored(
        self, expert: int, tokens: Tensor, weights1: Weights, u0_PD: Tensor, *, identical: bool
    ) -> Tensor:
        """u_e¹ at the base's canonical states, compute dtype [P, D]; the base's own rows where nothing differs."""
        gate1_P = self._weights1_TE[tokens, expert]
        if identical and (
            not self._weighs_input or torch.equal(gate1_P, self.base.input_weights(expert, tokens))
        ):
            return u0_PD
        return self.tuned.replay.expert(self.tuned.layer, weights1, self.gate.g_TD, tokens, gate1_P)

    def add_requantised(self, expert: int, weights: Weights) -> None:
        """Evaluate base expert `expert` once more, as another format would keep it, at the base's own state."""
        if self.ratio_requantised_MP is None:
            self.ratio_requantised_MP = torch.full_like(self.ratio_MP, torch.nan)
        for number, group in enumerate(self._groups):
            part = group.part(expert)
            if part.start == part.stop:
                continue
            tokens_M, slots = group.tokens_R[part], group.slots_R[part]
            kept_PD = self.base.evaluate(expert, weights, self.base.measured_M[tokens_M])
            change = partial(self._kept, tokens_M, self._base_rows[number], kept_PD)
            ratio_P = torch.cat(each(change, *kept_PD.shape, on=kept_PD.device))
            self.ratio_requantised_MP[tokens_M, slots] = ratio_P

    def _kept(self, tokens_M: Tensor, u0_PD: Tensor, kept_PD: Tensor, part: slice) -> Tensor:
        """Relative change of some visible updates by the format alone, float64."""
        tangent = self.tangent.at(tokens_M[part])
        return relative_change(tangent(u0_PD[part]), tangent(kept_PD[part]))[0]

    def _record(
        self, tokens_M: Tensor, slots: Tensor, u0_PD: Tensor, u1_PD: Tensor, native_PD: Tensor, part: slice
    ) -> None:
        """Enter the visible changes of some rows, and their share of Eq. 15; every row is of another token."""
        tokens_M, slots = tokens_M[part], slots[part]
        u0_PD, u1_PD, native_PD = u0_PD[part], u1_PD[part], native_PD[part]
        at = (tokens_M, slots)
        u0_PD, u1_PD = u0_PD.float(), u1_PD.float()
        tangent = self.tangent.at(tokens_M)
        v0_PD = tangent(u0_PD)
        ratio_P, norm0_P, _, change_P = relative_change(v0_PD, tangent(u1_PD))
        self.ratio_MP[at], self.norm0_MP[at], self.change_MP[at] = ratio_P, norm0_P, change_P
        native_v_PD = self.native_tangent(native_PD, tokens_M)
        native_change_P = length(native_v_PD - v0_PD)
        self.ratio_native_MP[at] = native_change_P / (length(native_v_PD) + norm0_P + RATIO_EPS)
        # Two rounded products and their difference, so that equal terms cancel exactly.
        weighted1_PD = u1_PD * self.omega1_MP[at][:, None]
        terms_PD = weighted1_PD.sub_(u0_PD * self.omega0_MP[at][:, None])
        self.delta_MD.index_add_(0, tokens_M, terms_PD.double())

    def changes(self) -> tuple[Tensor, Tensor]:
        """‖ΔV‖ and ‖V⁰‖ of Eq. 15 at the anchor, float64 [M]; every expert must have passed."""
        k, width = self.base.top_k, self.delta_MD.shape[1]

        def norms(p: slice) -> Tensor:
            tokens_M = torch.arange(p.start, p.stop, device=self.delta_MD.device)
            rows_MKD = chosen(self.base.rows_RD, self.base.place_MP[p, :k]).float()
            field0_MD = torch.bmm(self.omega0_MP[p, None, :k], rows_MKD).squeeze(1)
            tangent = self.tangent.at(tokens_M)
            return torch.stack([length(tangent(field_MD)) for field_MD in (self.delta_MD[p], field0_MD)])

        parts = each(norms, len(self.delta_MD), width * (k + 1), on=self.delta_MD.device)
        change_M, norm0_M = torch.cat(parts, dim=1)
        return change_M, norm0_M
