"""The pass of one batch through the experts of one layer, for every checkpoint under audit.

Legend: W windows, S tokens per window, T = W·S tokens, D model width, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_atlas.auditing.layer.batches import WindowBatch
from moe_atlas.auditing.layer.expert_source import ExpertSource
from moe_atlas.auditing.layer.expert_stream import Expert, LayerExperts
from moe_atlas.auditing.layer.measurements import LayerMeasurements
from moe_atlas.auditing.layer.side import Side
from moe_atlas.auditing.layer.view import Scope, View, view_batch
from moe_atlas.auditing.processes.group import Group
from moe_atlas.geometry import assumptions, finite, health, pair
from moe_atlas.geometry.fields.pair_fields import PairFields
from moe_atlas.models.spec import LayerSpec
from moe_atlas.replay.router import Routing


@dataclass(frozen=True)
class Reuse:
    """Results of the base that the tuned checkpoint reuses at one layer, because values and arithmetic are equal.

    Attributes:
        view: reuse the whole view, because states and all tensors except the experts are equal.
        gate: reuse the anchored gate coordinate, because the gain is equal.
        routing: reuse the anchored routing, because gain and router are equal.
    """

    view: bool = False
    gate: bool = False
    routing: bool = False


class BatchPass:
    """One batch at one layer: routing (in the constructor), then all experts (`add`), then measurements (`measure`).

    Every process evaluates its experts on every batch. Only the owner of the batch calls `measure` and `finish`.

    Args:
        sides: the checkpoints under audit.
        layers: their specs of this layer.
        number: number of the batch.
        batch: the batch.
        scope: settings of the evaluation.
        experts: the layer's experts.
        reuse: results of the base that the tuned checkpoint reuses.
        group: the processes that share the audit.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        layers: Sequence[LayerSpec],
        number: int,
        batch: WindowBatch,
        scope: Scope,
        experts: LayerExperts,
        reuse: Reuse,
        group: Group,
    ) -> None:
        self.number, self.batch, self.scope = number, batch, scope
        self._group, self._owner = group, group.owner(number)
        self.views: list[View] = []
        for index, (side, layer) in enumerate(zip(sides, layers, strict=True)):
            if index and reuse.view:
                base = self.views[0]
                self.views.append(replace(base, side=side, layer=layer, fields=base.fields.shared_copy()))
                continue
            state_WSD = group.broadcast(side.states[number], self._owner)
            stored_E = experts.source.stored_E(index)
            self.views.append(view_batch(side, layer, state_WSD, batch, scope, stored_E))
        numberings = expert_numberings(experts.source) if batch.measured else []
        self.pairs = [Anchored(self.views, match_E, scope, reuse) for match_E in numberings]
        self._states: dict[str, Tensor] = {}
        if self.pairs:
            self._states = pair.coordinate_channels(self.views[0].gate, self.views[1].gate)
        for view in self.views:
            view.free_router_inputs()

    def add(self, expert: Expert) -> None:
        """Evaluate one expert on every token of the batch that needs it."""
        for view, weights in reversed(list(zip(self.views, expert.weights, strict=True))):
            view.fields.add(expert.index, weights, identical=expert.identical)
        for anchored in self.pairs:
            anchored.add(expert)

    def exchange(self, *, identical: bool) -> None:
        """Send the evaluations of every process to the owner of the batch.

        Args:
            identical: whether every expert of the layer holds its counterpart's values, over all processes.
        """
        # Every process routes for itself. If the routed sets differ, the evaluations do not fit together.
        sets = {
            f"the routing of the {view.side.name} checkpoint": view.routing.topk_TK for view in self.views
        }
        anchored_sets = [anchored.routing.topk_TK for anchored in self.pairs]
        self._group.agree(sets | {f"the routing at the anchor ({n})": s for n, s in enumerate(anchored_sets)})
        for view in self.views:
            if not identical:
                view.fields.stop_sharing()
            if not view.fields.shares_rows:
                count = view.fields.experts
                self._group.collect(view.fields.rows_RD, view.fields.rows_of, count, self._owner)
        for anchored in self.pairs:
            fields = anchored.fields
            for values_MP in fields.slot_values():
                self._group.collect(values_MP, fields.slots_of, fields.base.experts, self._owner)
            self._group.add_up(fields.delta_MD, self._owner)

    def measure(self, measurements: LayerMeasurements, band: pair.NoiseBand) -> None:
        """Add the batch's values to the layer's measurements."""
        windows = self.batch.windows
        self._measure_non_finite(measurements, windows)
        if measurements.keeps_tokens:
            base, tuned = self.routings
            measurements.add_moves(base, tuned, windows)
        if not self.batch.measured:
            return
        values: dict[str, Tensor] = {}
        for view in self.views:
            if not view.fields.shares_rows:
                values = self._health(view)
            name, own_E = view.side.name, torch.argsort(view.stored_E)
            measurements.add_routing(name, pair.relabelled(view.routing, own_E), windows)
            measurements.add_tokens(name, values, windows)
        if self.pairs:
            self._measure_pairs(measurements, band, windows)

    @property
    def routings(self) -> list[Routing]:
        """The routing of the batch by each checkpoint at its own states."""
        return [view.routing for view in self.views]

    def finish(self) -> None:
        """Compute the batch's state after the layer."""
        for view in self.views:
            if view.fields.shares_rows:
                view.side.states[self.number] = self.views[0].side.states[self.number]
            else:
                view.finish(self.number)

    def _measure_non_finite(self, measurements: LayerMeasurements, windows: range) -> None:
        """Add the tokens on which a checkpoint is not finite, at its own states or, in a pair, at the anchor."""
        broken: list[Tensor] = []
        for view in self.views:
            same = view.fields.shares_rows
            broken.append(broken[0].clone() if same else finite.broken_tokens(view.x_TD, view.fields))
        for anchored in self.pairs[:1]:
            at_anchor = finite.broken_at_anchor(anchored.fields, anchored.routing)
            broken = [own_T | other_T for own_T, other_T in zip(broken, at_anchor, strict=True)]
        for view, broken_T in zip(self.views, broken, strict=True):
            measurements.add_non_finite(view.side.name, broken_T, windows)

    def _health(self, view: View) -> dict[str, Tensor]:
        """Return State1, State2, jump and ε/r² of one checkpoint at its own states."""
        values = health.state1(view.routing)
        values |= health.state2(view.fields, view.tangent, self.scope.adjacency)
        return values | {"radial_to_tangent": assumptions.radial_to_tangent(view.x_TD, view.layer)}

    def _measure_pairs(self, measurements: LayerMeasurements, band: pair.NoiseBand, windows: range) -> None:
        """Add the drift channels and the perturbation budget, after a relabelling and for equal stored indices."""
        base, tuned = self.views
        for prefix, anchored in zip(("pair", "same_index"), self.pairs, strict=False):
            routing, native = anchored.routing, anchored.native
            values = self._states | pair.routing_channels(base.routing, routing, native, band)
            measurements.add_tokens(prefix, values, windows)
            quantile = self.scope.quantile
            content = pair.content_channels(anchored.fields, base.routing, routing, native, quantile)
            measurements.add_tokens(prefix, content, windows)
        # Values per expert need the relabelled numbering: equal stored indices may mean different experts.
        changes = pair.expert_changes(self.pairs[0].fields, self.pairs[0].routing, len(windows))
        measurements.add_experts(*changes, windows)
        measurements.add_tokens("control", pair.controls(base.x_TD, tuned.x_TD), windows)


class Anchored:
    """The tuned checkpoint at the base's canonical states.

    Args:
        views: views of base and tuned checkpoint.
        match_E: counterpart of each base expert, int64.
        scope: settings of the evaluation.
        reuse: results of the base that the tuned checkpoint reuses.
    """

    def __init__(self, views: Sequence[View], match_E: Tensor, scope: Scope, reuse: Reuse) -> None:
        base, tuned = views
        replay, weights = tuned.side.replay, tuned.side.weights
        gate = base.gate if reuse.gate else replay.anchored(tuned.layer, weights, base.gate.z_TD, base.x_TD)
        routing = base.routing if reuse.routing else replay.route(tuned.layer, weights, gate, base.tokens_T)
        if gate is not base.gate:  # free both: each is as large as the residual or larger
            gate.router_TD, gate.z_TD = gate.router_TD.new_empty(0), None
        self.match_E = match_E
        self.as_numbered = torch.equal(match_E, torch.arange(len(match_E)))
        self.routing: Routing = pair.relabelled(routing, match_E)
        self.native: Routing = pair.relabelled(tuned.routing, match_E)
        self.fields = PairFields(
            base.fields,
            tuned.fields,
            gate,
            self.routing,
            base.tangent,
            tuned.tangent,
            everyone=scope.everyone,
        )

    def add(self, expert: Expert) -> None:
        """Evaluate a base expert and its counterpart."""
        counterpart = int(self.match_E[expert.index])
        weights = expert.weights[1]
        if not self.as_numbered and expert.by_index is not None:
            weights = expert.by_index
        identical = expert.identical and weights is expert.weights[1]
        self.fields.add(
            expert.index,
            counterpart,
            expert.weights[0],
            weights,
            identical=identical,
            requantised=expert.requantised,
        )


def expert_numberings(source: ExpertSource) -> list[Tensor]:
    """Return the counterparts under which to measure a pair: relabelled first, then by stored index; none alone."""
    identity_E = torch.arange(source.count)
    if len(source.sides) == 1:
        return []
    return [identity_E] if source.match_E is None else [identity_E, torch.argsort(source.match_E)]
