"""One checkpoint's view of one batch at one routed layer: residual, router input, routing and expert outputs.

Legend: W windows, S tokens per window, T = W·S tokens, M measured tokens, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_atlas.auditing.layer.batches import WindowBatch
from moe_atlas.auditing.layer.side import Side
from moe_atlas.geometry.fields.evaluation import distinct, renumbered, specificity_partner
from moe_atlas.geometry.fields.single_fields import NativeFields
from moe_atlas.geometry.fields.tangent import TangentMap
from moe_atlas.models.spec import LayerSpec
from moe_atlas.replay.model import GateInput
from moe_atlas.replay.primitives.norm import Canonical
from moe_atlas.replay.router import Routing


@dataclass(frozen=True)
class Scope:
    """The registered settings of the evaluation.

    Attributes:
        seed: seed of the specificity partner.
        everyone: whether to evaluate all experts, not only the active experts.
        stride: quantities that need expert outputs are measured at every `stride`-th token of a window.
        quantile: q of the content drift.
        adjacency: β_adj of the smooth overlap; None leaves the smooth overlap out.
    """

    seed: int
    everyone: bool
    stride: int
    quantile: float
    adjacency: float | None

    def measured(self, batch: WindowBatch) -> Tensor:
        """Return the batch's measured tokens, int64 [M] on the CPU; windows of other roles than base have none."""
        windows, length = batch.tokens_WS.shape
        if not batch.measured:
            return torch.empty(0, dtype=torch.int64)
        grid = torch.arange(windows)[:, None] * length + torch.arange(0, length, self.stride)[None, :]
        return grid.reshape(-1)


@dataclass
class View:
    """One checkpoint's computation on one batch at one routed layer.

    Attributes:
        side: the checkpoint.
        layer: its spec of the layer.
        state_WSD: residual in front of the block: x_WSD, or its streams [W, S, N, D].
        x_WSD: input of the norm in front of the block.
        gate: canonical state, gate coordinate and router input.
        routing: routing at the checkpoint's own states.
        fields: expert outputs.
        tangent: P_z at the measured tokens.
        tokens_T: ids of the tokens, int64.
        stored_E: index under which the checkpoint stores each expert; relabelled tuned experts have the base's numbers.
    """

    side: Side
    layer: LayerSpec
    state_WSD: Tensor
    x_WSD: Tensor
    gate: GateInput
    routing: Routing
    fields: NativeFields
    tangent: TangentMap
    tokens_T: Tensor
    stored_E: Tensor

    @property
    def x_TD(self) -> Tensor:
        """The residual entering the norm in front of the MoE block, flat over tokens."""
        return self.x_WSD.reshape(-1, self.x_WSD.shape[-1])

    def free_router_inputs(self) -> None:
        """Free the router input, and the canonical states, which the tangent map recomputes on demand."""
        self.gate.router_TD = self.gate.router_TD.new_empty(0)
        self.gate.z_TD = None

    def finish(self, number: int) -> None:
        """Compute the state after the layer and store it as the state of batch `number`."""
        state = self.side.replay.finish(
            self.layer, self.side.weights, self.state_WSD, self.gate, self.fields.routed_sum()
        )
        self.side.states[number] = state


def view_batch(
    side: Side, layer: LayerSpec, state_WSD: Tensor, batch: WindowBatch, scope: Scope, stored_E: Tensor
) -> View:
    """Route a batch from its residual in front of the block, and plan the evaluation of its experts."""
    replay, weights = side.replay, side.weights
    x_WSD = replay.block_input(layer, weights, state_WSD)
    x_TD = x_WSD.reshape(-1, x_WSD.shape[-1])
    gate = replay.gate_input(layer, weights, x_TD)
    tokens_T = batch.tokens_WS.flatten().to(replay.device)
    routing = replay.route(layer, weights, gate, tokens_T)
    places_M = scope.measured(batch)
    measured_M = places_M.to(replay.device)
    length = batch.tokens_WS.shape[1]
    excluded = distinct(torch.cat([routing.topk_TK, routing.competitor_T[:, None]], dim=1)[measured_M])
    # The draw uses the checkpoint's own numbering, so that its health does not depend on the other checkpoint.
    partner_M = specificity_partner(
        scope.seed,
        batch.first + places_M.numpy() // length,
        places_M.numpy() % length,
        layer.index,
        renumbered(excluded, stored_E),
        layer.routed.router.experts,
    )
    fields = NativeFields(
        replay,
        layer,
        gate,
        routing,
        measured_M,
        renumbered(partner_M, torch.argsort(stored_E)),
        everyone=scope.everyone and batch.measured,
    )
    tangent = tangent_of(layer, x_TD, measured_M)
    return View(side, layer, state_WSD, x_WSD, gate, routing, fields, tangent, tokens_T, stored_E)


def tangent_of(layer: LayerSpec, x_TD: Tensor, measured_M: Tensor) -> TangentMap:
    """Return P_z at the canonical states of the measured tokens."""
    z_MD = Canonical(x_TD, layer.norm, measured_M) if layer.pre_ffn_norm else None
    return TangentMap(z_MD, removes_mean=layer.routed.norm_kind == "layer")
