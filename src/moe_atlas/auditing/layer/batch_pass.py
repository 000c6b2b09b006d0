"""One batch on its way through the experts of one layer, as every checkpoint under audit sees it.

Legend: W windows, S tokens per window, T = W·S tokens, D model width, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_atlas.auditing.layer.batches import Batch
from moe_atlas.auditing.layer.expert_stream import Expert, LayerExperts
from moe_atlas.auditing.layer.reading import LayerReading
from moe_atlas.auditing.layer.side import Side
from moe_atlas.auditing.layer.view import Scope, View, look
from moe_atlas.auditing.processes.group import Group
from moe_atlas.geometry import assumptions, finite, health, pair
from moe_atlas.geometry.fields.pair_fields import PairFields
from moe_atlas.models.spec import LayerSpec
from moe_atlas.replay.router import Routing


@dataclass(frozen=True)
class Shared:
    """What equal values and equal arithmetic make the tuned checkpoint share with the base at one layer.

    Attributes:
        view: the states and every tensor but the experts are the base's, so everything in front of them is.
        gate: the gain is the base's, so the anchored gate coordinate is the base's own.
        routing: gain and router are the base's, so the anchored routing is the base's own.
    """

    view: bool = False
    gate: bool = False
    routing: bool = False


class Passage:
    """A batch at a layer: first its routing, then expert by expert, then the readings.

    Every process evaluates its experts on every batch; the readings and what follows are of the batch's owner.

    Args:
        sides: the checkpoints under audit.
        layers: their specs of this layer.
        number: which batch.
        batch: its tokens.
        scope: what is evaluated.
        experts: the layer's experts.
        shared: what need not be computed twice.
        group: the processes that share the audit.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        layers: Sequence[LayerSpec],
        number: int,
        batch: Batch,
        scope: Scope,
        experts: LayerExperts,
        shared: Shared,
        group: Group,
    ) -> None:
        self.number, self.batch, self.scope = number, batch, scope
        self._group, self._owner = group, group.owner(number)
        self.views: list[View] = []
        for index, (side, layer) in enumerate(zip(sides, layers, strict=True)):
            if index and shared.view:
                base = self.views[0]
                self.views.append(replace(base, side=side, layer=layer, fields=base.fields.shared_copy()))
                continue
            state_WSD = group.broadcast(side.states[number], self._owner)
            self.views.append(look(side, layer, state_WSD, batch, scope, experts.stored(index)))
        numberings = correspondences(experts) if batch.measured else []
        self.pairs = [Anchored(self.views, match_E, scope, shared) for match_E in numberings]
        self._states: dict[str, Tensor] = {}
        if self.pairs:
            self._states = pair.coordinate_channels(self.views[0].gate, self.views[1].gate)
        for view in self.views:
            view.forget()

    def add(self, expert: Expert) -> None:
        """Evaluate one expert wherever this batch needs it."""
        for view, weights in reversed(list(zip(self.views, expert.weights, strict=True))):
            view.fields.add(expert.index, weights, identical=expert.identical)
        for anchored in self.pairs:
            anchored.add(expert)

    def exchange(self, *, identical: bool) -> None:
        """Let the owner have what every process evaluated.

        Args:
            identical: whether every expert of the layer is, in all processes.
        """
        # Each process routes for itself; where they come to other sets, what they hold does not belong together.
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

    def read(self, reading: LayerReading, band: pair.NoiseBand) -> None:
        """Enter what the batch says about the layer."""
        windows = self.batch.windows
        self._read_broken(reading, windows)
        if not self.batch.measured:
            return
        values: dict[str, Tensor] = {}
        for view in self.views:
            if not view.fields.shares_rows:
                values = self._health(view)
            name = view.side.name
            reading.routing(name, pair.relabelled(view.routing, torch.argsort(view.stored_E)), windows)
            reading.tokens(name, values, windows)
        if self.pairs:
            self._read_pairs(reading, band, windows)

    @property
    def routings(self) -> list[Routing]:
        """How each checkpoint routes the batch at its own states."""
        return [view.routing for view in self.views]

    def finish(self) -> None:
        """Leave the layer: the routed sums join shared experts and residual."""
        for view in self.views:
            if view.fields.shares_rows:
                view.side.states[self.number] = self.views[0].side.states[self.number]
            else:
                view.finish(self.number)

    def _read_broken(self, reading: LayerReading, windows: range) -> None:
        """Tokens on which a checkpoint is not finite, at its own states and, of a pair, at the anchor."""
        broken: list[Tensor] = []
        for view in self.views:
            same = view.fields.shares_rows
            broken.append(broken[0].clone() if same else finite.broken_tokens(view.x_TD, view.fields))
        for anchored in self.pairs[:1]:
            at_anchor = finite.broken_at_anchor(anchored.fields, anchored.routing)
            broken = [own_T | other_T for own_T, other_T in zip(broken, at_anchor, strict=True)]
        for view, broken_T in zip(self.views, broken, strict=True):
            reading.broken(view.side.name, broken_T, windows)

    def _health(self, view: View) -> dict[str, Tensor]:
        """State1, State2, jump and ε/r² of one checkpoint at its own states."""
        values = health.state1(view.routing)
        values |= health.state2(view.fields, view.tangent, self.scope.adjacency)
        return values | {"radial_to_tangent": assumptions.radial_to_tangent(view.x_TD, view.layer)}

    def _read_pairs(self, reading: LayerReading, band: pair.NoiseBand, windows: range) -> None:
        """The drift channels and the perturbation budget, after a relabelling and as stored."""
        base, tuned = self.views
        for prefix, anchored in zip(("pair", "same_index"), self.pairs, strict=False):
            routing, native = anchored.routing, anchored.native
            values = self._states | pair.routing_channels(base.routing, routing, native, band)
            reading.tokens(prefix, values, windows)
            quantile = self.scope.quantile
            content = pair.content_channels(anchored.fields, base.routing, routing, native, quantile)
            reading.tokens(prefix, content, windows)
        # By expert only after a relabelling: as stored, the numbers mean other experts.
        reading.experts(
            *pair.expert_changes(self.pairs[0].fields, self.pairs[0].routing, len(windows)), windows
        )
        reading.tokens("control", pair.controls(base.x_TD, tuned.x_TD), windows)


class Anchored:
    """The tuned checkpoint at the base's canonical states, base expert e against tuned expert `match_E[e]`."""

    def __init__(self, views: Sequence[View], match_E: Tensor, scope: Scope, shared: Shared) -> None:
        base, tuned = views
        replay, weights = tuned.side.replay, tuned.side.weights
        gate = base.gate if shared.gate else replay.anchored(tuned.layer, weights, base.gate.z_TD, base.x_TD)
        routing = base.routing if shared.routing else replay.route(tuned.layer, weights, gate, base.tokens_T)
        if gate is not base.gate:  # both as large as the residual or larger, and of no more use
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


def correspondences(experts: LayerExperts) -> list[Tensor]:
    """Expert numberings to measure a pair under: after a relabelling first, then the same index; none alone."""
    identity_E = torch.arange(experts.count)
    if len(experts.sides) == 1:
        return []
    return [identity_E] if experts.match_E is None else [identity_E, torch.argsort(experts.match_E)]
