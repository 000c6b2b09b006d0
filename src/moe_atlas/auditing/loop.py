"""The audit's hot loop: both checkpoints, layer by layer, each byte once and no more than a layer at a time.

At every routed layer it reads the routed object of each checkpoint at its own states, and of the pair at the
base's canonical states; everything else (windows to intervals to verdict) happens without weights, later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_atlas.auditing.batches import Batch
from moe_atlas.auditing.experts import LayerExperts
from moe_atlas.auditing.memory import give_back
from moe_atlas.auditing.noise import score_changes
from moe_atlas.auditing.options import Progress
from moe_atlas.auditing.reading import Arrays, LayerReading
from moe_atlas.auditing.resume import Nowhere, Resume
from moe_atlas.auditing.side import Side, Weights
from moe_atlas.auditing.view import Scope, View, look
from moe_atlas.families.spec import LayerSpec, TensorRef
from moe_atlas.geometry import assumptions, health, pair
from moe_atlas.geometry.fields import PairFields
from moe_atlas.geometry.output import window_outputs
from moe_atlas.probes.windows import Window
from moe_atlas.replay.router import Routing
from moe_atlas.weights.identity import layer_identity
from moe_atlas.weights.ledger import WeightsLedger, same_bytes


@dataclass
class Evidence:
    """Everything measured: window arrays, and the facts that no window carries."""

    arrays: Arrays = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    identity: list[dict[str, Any]] = field(default_factory=list)
    ledger: WeightsLedger = field(default_factory=WeightsLedger)


@dataclass
class Walk:
    """One audit under way.

    Attributes:
        sides: the base, and the tuned checkpoint unless a baseline is recorded.
        batches: the partition of the probe windows.
        bands: noise band per layer index.
        budget: bytes of experts that may be held.
        measures_noise: the sides are one checkpoint under two execution orders.
        resume: where the state between layers is kept.
        chart_maps: sample this many experts per layer for rank and condition of the overlap maps; 0 for none.
    """

    sides: Sequence[Side]
    batches: Sequence[Batch]
    scope: Scope
    protected: frozenset[int]
    progress: Progress
    bands: dict[int, pair.NoiseBand] = field(default_factory=dict)
    budget: int = 1 << 29
    chart_maps: int = 0
    measures_noise: bool = False
    resume: Resume = field(default_factory=Nowhere)
    evidence: Evidence = field(default_factory=Evidence)

    def states_identical(self, number: int) -> bool:
        """Whether everything in front of the `number`-th layer is byte-identical and computed alike."""
        specs = [side.spec.layers[:number] for side in self.sides]
        indices = {None, *(layer.index for layer in specs[0])}
        return specs[0] == specs[1] and not indices & self.evidence.ledger.changed_layers


@torch.inference_mode()
def walk(audit: Walk, windows: Sequence[Window]) -> Evidence:
    """Replay the probe windows through every layer of each checkpoint and read what the contract asks for."""
    sides = audit.sides
    depth = len(sides[0].spec.layers)
    done = audit.resume.restore(audit)
    audit.progress.phase("replaying layers", depth - done)
    if not done:
        embed(audit)
    for number in range(done, depth):
        layers = [side.spec.layers[number] for side in sides]
        for side, layer in zip(sides, layers, strict=True):
            side.enter(layer.refs)
        (routed_layer if layers[0].moe else dense_layer)(audit, layers)
        give_back()
        audit.resume.save(audit, number + 1)
        audit.progress.step(f"layer {layers[0].index}", sum(side.reader.bytes_read for side in sides))
    outputs(audit, windows)
    return audit.evidence


def embed(audit: Walk) -> None:
    """Start every window from its tokens."""
    for side in audit.sides:
        side.enter(side.spec.embed_refs)
        side.embed(batch.tokens_WS for batch in audit.batches)
    record_weights(audit, None, audit.sides[0].spec.embed_refs)


def dense_layer(audit: Walk, layers: Sequence[LayerSpec]) -> None:
    """Replayed, not measured."""
    record_weights(audit, layers[0].index, layers[0].refs)
    for side, layer in zip(audit.sides, layers, strict=True):
        for number, state in enumerate(side.states):
            x_WSD = side.replay.attention(layer, side.weights, state)
            side.states[number] = side.replay.dense(layer, side.weights, x_WSD)


def routed_layer(audit: Walk, layers: Sequence[LayerSpec]) -> None:
    """Read the routed object of one layer, batch by batch, one expert of each checkpoint at a time.

    After a consistent relabelling the tuned checkpoint is read in the base's numbering throughout, so that the very
    same arithmetic runs as without it: a pure relabelling is exactly 0, and moves no verdict.
    """
    experts = LayerExperts(audit.sides, layers, audit.evidence.ledger, audit.budget)
    as_stored = {} if experts.match_E is None else audit.sides[1].renumber(layers[1], experts.match_E)
    record_weights(audit, layers[0].index, layers[0].refs, as_stored)
    reading = LayerReading(layers[0].index, layer_facts(audit, layers), audit.scope.stride)
    numberings = correspondences(experts)
    for number, batch in enumerate(audit.batches):
        views = [
            look(side, layer, number, batch, audit.scope, experts.stored(index))
            for index, (side, layer) in enumerate(zip(audit.sides, layers, strict=True))
        ]
        pairs = [Anchored(views, match_E, audit.scope) for match_E in numberings] if batch.measured else []
        for expert in range(experts.count):
            experts.enter(expert)
            for index, view in enumerate(views):
                view.fields.add(expert, experts.weights(index, expert))
            for anchored in pairs:
                anchored.add(expert, experts)
        if batch.measured:
            read_health(audit, reading, views, len(batch.tokens_WS))
            read_pairs(audit, reading, views, pairs, len(batch.tokens_WS))
        for view in views:
            view.finish(number)
    close_layer(audit, reading, experts, layers)


class Anchored:
    """The tuned checkpoint at the base's canonical states, base expert e against tuned expert `match_E[e]`."""

    def __init__(self, views: Sequence[View], match_E: Tensor, scope: Scope) -> None:
        base, tuned = views
        replay, weights = tuned.side.replay, tuned.side.weights
        gate = replay.anchored(tuned.layer, weights, base.gate.z_TD, base.x_TD)
        self.match_E = match_E
        self.routing: Routing = pair.relabelled(replay.route(tuned.layer, weights, gate), match_E)
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

    def add(self, expert: int, experts: LayerExperts) -> None:
        """Evaluate base expert `expert` and its counterpart."""
        counterpart = int(self.match_E[expert])
        self.fields.add(expert, counterpart, experts.weights(0, expert), experts.weights(1, counterpart))
        requantised = experts.requantised(expert)
        if requantised is not None:
            self.fields.add_requantised(expert, requantised)


def correspondences(experts: LayerExperts) -> list[Tensor]:
    """Expert numberings to measure a pair under: after a relabelling first, then the same index; none alone."""
    identity_E = torch.arange(experts.count)
    if len(experts.sides) == 1:
        return []
    return [identity_E] if experts.match_E is None else [identity_E, torch.argsort(experts.match_E)]


def read_health(audit: Walk, reading: LayerReading, views: Sequence[View], windows: int) -> None:
    """State1, State2, jump and occupancy of each checkpoint at its own states."""
    for view in views:
        name = view.side.name
        reading.routing(name, pair.relabelled(view.routing, torch.argsort(view.stored_E)), windows)
        reading.tokens(name, health.state1(view.routing), windows)
        reading.tokens(name, health.state2(view.fields, view.tangent, audit.scope.adjacency), windows)
        ratio_T = assumptions.radial_to_tangent(view.x_TD, view.layer)
        reading.tokens(name, {"radial_to_tangent": ratio_T}, windows)


def read_pairs(
    audit: Walk, reading: LayerReading, views: Sequence[View], pairs: Sequence[Anchored], windows: int
) -> None:
    """The drift channels and the perturbation budget, after a relabelling and as stored."""
    if not pairs:
        return
    base, tuned = views
    coordinates = pair.coordinate_channels(base.gate, tuned.gate)
    band = audit.bands.get(reading.layer, pair.NoiseBand())
    for prefix, anchored in zip(("pair", "same_index"), pairs, strict=False):
        routing, native = anchored.routing, anchored.native
        values = coordinates | pair.routing_channels(base.routing, routing, native, band)
        reading.tokens(prefix, values, windows)
        content = pair.content_channels(anchored.fields, base.routing, routing, native, audit.scope.quantile)
        reading.tokens(prefix, content, windows)
    reading.tokens("control", pair.controls(base.x_TD, tuned.x_TD), windows)
    if audit.measures_noise:
        changes, noise = score_changes(base.routing, tuned.routing), reading.facts.setdefault("noise", {})
        noise |= {key: max(value, noise.get(key, 0.0)) for key, value in changes.items()}


def layer_facts(audit: Walk, layers: Sequence[LayerSpec]) -> dict[str, Any]:
    """What is known of a layer before a token passes: its shape, its assumptions, and what bytes make exact."""
    facts: dict[str, Any] = {"layer": layers[0].index, "protected": layers[0].index in audit.protected}
    moe = layers[0].moe
    assert moe is not None
    facts |= {"experts": moe.router.experts, "top_k": moe.router.top_k, "assumptions": {}}
    facts["undefined"] = assumptions.undefined(moe)
    for side, layer in zip(audit.sides, layers, strict=True):
        assert layer.moe is not None
        gain_D = assumptions.effective_gain(layer, side.weights)
        facts["assumptions"][side.name] = assumptions.structural(layer.moe, side.spec.width) | {
            "gain_anisotropy": assumptions.gain_anisotropy(gain_D)
        }
        facts[side.name] = {}
    if len(audit.sides) == 2:
        facts["exact"] = exactness(audit, layers)
    return facts


def exactness(audit: Walk, layers: Sequence[LayerSpec]) -> dict[str, bool]:
    """Which inputs of this layer are byte-identical, so that what depends on nothing else is exactly 0."""
    base, tuned = audit.sides
    router = {ref.role for ref in layers[0].refs if ref.kind in ("router", "selection_bias")}
    before = {ref.role for ref in layers[0].refs if ref.kind in ("attention", "norm")}
    same = {role: same_bytes(base.resident[role], tuned.resident[role]) for role in router | before}
    gain = all(equal for role, equal in same.items() if role.startswith("pre_ffn_norm"))
    equal_spec = layers[0].describe() == layers[1].describe()
    return {
        "states": audit.states_identical(layers[0].index) and equal_spec and all(same[r] for r in before),
        "gain": gain,
        "router": gain and equal_spec and all(same[role] for role in router),
    }


def close_layer(
    audit: Walk, reading: LayerReading, experts: LayerExperts, layers: Sequence[LayerSpec]
) -> None:
    """Turn the layer's tokens into window arrays and its experts into an account of their identity."""
    audit.evidence.arrays |= reading.arrays()
    facts = reading.facts
    for side in audit.sides:
        name = f"layers.{reading.layer}.{side.name}.radial_to_tangent"
        facts["assumptions"][side.name]["radial_to_tangent"] = assumptions.radial_mean(
            audit.evidence.arrays.pop(name, None)
        )
    if len(audit.sides) == 2:
        moe = layers[0].moe
        assert moe is not None
        # An expert weighted on its input moves with the router.
        facts["exact"]["experts"] = experts.identical and (
            facts["exact"]["router"] or not moe.weight_on_input
        )
        audit.evidence.identity.append(
            layer_identity(
                layers[0].index,
                experts.sketches(0),
                experts.sketches(1),
                experts.match_E,
                (experts.clones(0), experts.clones(1)),
                (experts.initialised(0), experts.initialised(1)),
            )
        )
    if audit.chart_maps:
        for index, side in enumerate(audit.sides):
            facts["assumptions"][side.name]["chart_maps"] = experts.chart_maps(index, audit.chart_maps)
    audit.evidence.layers.append(facts)


def record_weights(
    audit: Walk, layer: int | None, refs: Sequence[TensorRef], as_stored: Weights | None = None
) -> None:
    """Enter the tensors at hand in the weights ledger, and beside them those that a relabelling reordered."""
    ledger = audit.evidence.ledger
    for ref in refs:
        tensors = [side.resident[ref.role] for side in audit.sides]
        ledger.add(ref.name, ref.kind, layer, tensors[0], tensors[1] if len(tensors) == 2 else None)
        if as_stored and ref.role in as_stored:
            ledger.add(ref.name, ref.kind, layer, tensors[0], as_stored[ref.role], as_stored=True)


def outputs(audit: Walk, windows: Sequence[Window]) -> None:
    """Final norm and head: NLL, divergence and agreement of every window, task windows included."""
    sides = audit.sides
    audit.progress.phase("reading the output", len(audit.batches))
    for side in sides:
        side.enter(side.spec.final_refs)
    # A tied head was recorded as the embedding.
    record_weights(audit, None, [ref for ref in sides[0].spec.final_refs if ref.kind != "embedding"])
    heads: dict[str, Callable[[Tensor], Tensor]] = {
        side.name: partial(side.replay.logits, side.weights) for side in sides
    }
    columns: dict[str, list[float]] = {}
    for number, batch in enumerate(audit.batches):
        for row, window in enumerate(batch.windows):
            states: dict[str, Tensor] = {side.name: side.states[number][row] for side in sides}
            scored_S = torch.from_numpy(windows[window].scored)
            values = window_outputs(heads, states, batch.tokens_WS[row], scored_S, sides[0].spec.vocab)
            for key, value in values.items():
                columns.setdefault(key, []).append(value)
        audit.progress.step(f"batch {number + 1}", sum(side.reader.bytes_read for side in sides))
    for key, column in columns.items():
        audit.evidence.arrays[f"output.{key}"] = np.array(column, dtype=np.float64)
