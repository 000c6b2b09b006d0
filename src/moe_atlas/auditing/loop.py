"""The audit's hot loop: both checkpoints, layer by layer, no more than one layer and a few experts at a time.

At every routed layer it reads the routed object of each checkpoint at its own states, and of the pair at the
base's canonical states; everything else (windows to intervals to verdict) happens without weights, later.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from moe_atlas.auditing import ends
from moe_atlas.auditing.ahead import DEPTH, background
from moe_atlas.auditing.batches import BATCH_TOKENS, Batch, rounds
from moe_atlas.auditing.clock import Clock
from moe_atlas.auditing.experts import LayerExperts, router_rows
from moe_atlas.auditing.group import Group
from moe_atlas.auditing.memory import give_back
from moe_atlas.auditing.noise import score_changes
from moe_atlas.auditing.options import Progress
from moe_atlas.auditing.passage import Passage, Shared
from moe_atlas.auditing.reading import Arrays, LayerReading
from moe_atlas.auditing.recording import record_weights
from moe_atlas.auditing.resume import Nowhere, Resume
from moe_atlas.auditing.side import Side
from moe_atlas.auditing.view import Scope
from moe_atlas.families.spec import LayerSpec, TensorRef
from moe_atlas.geometry import assumptions, pair
from moe_atlas.probes.windows import Window
from moe_atlas.weights.comparison import changes_of_rows
from moe_atlas.weights.identity import layer_identity
from moe_atlas.weights.ledger import WeightsLedger
from moe_atlas.weights.values import same_bytes


@dataclass
class Evidence:
    """Everything measured: window arrays, and the facts that no window carries."""

    arrays: Arrays = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    identity: list[dict[str, Any]] = field(default_factory=list)
    vocabulary: dict[str, Any] = field(default_factory=dict)
    ledger: WeightsLedger = field(default_factory=WeightsLedger)
    unreplayed: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Walk:
    """One audit under way.

    Attributes:
        sides: the base, and the tuned checkpoint unless a baseline is recorded.
        batches: the partition of the probe windows.
        bands: noise band per layer index.
        pool: threads that read ahead.
        depth: experts read ahead.
        held_tokens: tokens whose evaluated experts may be in memory together; one batch at least.
        skips: leave out what equal values make unnecessary; the numbers are the same, bit for bit, either way.
        group: the processes that share the audit.
        in_step: whether both checkpoints carry the very same states.
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
    pool: Executor = field(default_factory=background)
    depth: int = DEPTH
    held_tokens: int = BATCH_TOKENS
    skips: bool = True
    chart_maps: int = 0
    measures_noise: bool = False
    group: Group = field(default_factory=Group)
    in_step: bool = False
    resume: Resume = field(default_factory=Nowhere)
    evidence: Evidence = field(default_factory=Evidence)
    clock: Clock = field(default_factory=Clock)

    @property
    def alike(self) -> bool:
        """Whether two checkpoints are computed by the same arithmetic, so that equal tensors give equal numbers."""
        return (
            self.skips and len(self.sides) == 2 and self.sides[0].replay.computes_like(self.sides[1].replay)
        )

    @property
    def own(self) -> list[int]:
        """Numbers of the batches whose states this process holds."""
        return [number for number in range(len(self.batches)) if self.group.owns(number)]

    def enter(self, refs: Sequence[Sequence[TensorRef]]) -> None:
        """Read tensors of every checkpoint at once, dropping those of the last layer."""
        with self.clock.phase("reading the rest"):
            for side in self.sides:
                side.leave()
            readers = self.group.deliver([side.reader for side in self.sides], refs, self.pool)
            list(self.pool.map(Side.enter, self.sides, refs, readers))

    @cached_property
    def alike_layers(self) -> list[bool]:
        """For every layer, whether both checkpoints compute it alike, wherever its tensors are stored."""
        pairs = zip(*(side.spec.layers for side in self.sides), strict=True)
        return [first.describe() == second.describe() for first, second in pairs]

    def states_identical(self, number: int) -> bool:
        """Whether everything in front of the `number`-th layer holds the same values and is computed alike."""
        indices = {None, *(layer.index for layer in self.sides[0].spec.layers[:number])}
        return all(self.alike_layers[:number]) and not indices & self.evidence.ledger.changed_layers

    def settle(self) -> None:
        """Once their changes are recorded, let equal values be computed with as one tensor, the base's."""
        if len(self.sides) == 2:
            self.sides[1].settle(self.sides[0])


@torch.inference_mode()
def walk(audit: Walk, windows: Sequence[Window]) -> Evidence:
    """Replay the probe windows through every layer of each checkpoint and read what the contract asks for."""
    with ExitStack() as threads:  # whoever reads ends before whoever hashes
        for side in audit.sides:
            threads.enter_context(side.reader.hashing_behind(background(1)))
        for reads in (*(side.loader for side in audit.sides), audit.pool):
            threads.enter_context(reads)
        layers_and_outputs(audit, windows)
    return audit.evidence


def layers_and_outputs(audit: Walk, windows: Sequence[Window]) -> None:
    """From the tokens, or from where an interrupted audit stood, to the last logit."""
    sides = audit.sides
    depth = len(sides[0].spec.layers)
    done = audit.resume.restore(audit)
    audit.progress.phase("replaying layers", depth - done)
    if not done:
        with audit.clock.phase("reading the rest"):
            ends.embed(audit)
    for number in range(done, depth):
        layers = [side.spec.layers[number] for side in sides]
        audit.enter([layer.refs for layer in layers])
        (routed_layer if layers[0].moe else dense_layer)(audit, layers)
        give_back()
        audit.resume.save(audit, number + 1)
        audit.progress.step(f"layer {layers[0].index}", sum(side.reader.bytes_read for side in sides))
    ends.outputs(audit, windows)


def dense_layer(audit: Walk, layers: Sequence[LayerSpec]) -> None:
    """Replayed, not measured."""
    record_weights(audit, layers[0].index, [layer.refs for layer in layers])
    audit.settle()
    alike = audit.in_step and layers[0].describe() == layers[1].describe()
    audit.in_step = alike and all_same(audit, layers)
    for number in audit.own:
        for side, layer in zip(audit.sides[:1] if audit.in_step else audit.sides, layers, strict=False):
            x_WSD = side.replay.attention(layer, side.weights, side.states[number])
            side.states[number] = side.replay.dense(layer, side.weights, x_WSD)
        if audit.in_step:
            audit.sides[1].states[number] = audit.sides[0].states[number]


def routed_layer(audit: Walk, layers: Sequence[LayerSpec]) -> None:
    """Read the routed object of one layer: a few batches at a time, and for them one expert at a time.

    After a consistent relabelling the tuned checkpoint is read in the base's numbering throughout, so that the very
    same arithmetic runs as without it: a pure relabelling is exactly 0, and moves no verdict.
    """
    experts = LayerExperts(
        audit.sides, layers, audit.evidence.ledger, audit.pool, audit.group, depth=audit.depth
    )
    as_stored = {} if experts.match_E is None else audit.sides[1].renumber(layers[1], experts.match_E)
    record_weights(audit, layers[0].index, [layer.refs for layer in layers], as_stored)
    audit.settle()
    reading = LayerReading(layers[0].index, layer_facts(audit, layers), audit.scope.stride)
    shared = what_is_shared(audit, layers, reading.facts, experts)
    *before, last = rounds(audit.batches, audit.held_tokens)
    for part in before:
        pass_together(audit, layers, part, experts, shared, reading, again=True)
    pass_together(audit, layers, last, experts, shared, reading)
    audit.in_step = shared.view and experts.identical
    close_layer(audit, reading, experts, layers)


def pass_together(
    audit: Walk,
    layers: Sequence[LayerSpec],
    part: Sequence[int],
    experts: LayerExperts,
    shared: Shared,
    reading: LayerReading,
    *,
    again: bool = False,
) -> None:
    """Take some batches through one layer; nothing of them but their states outlives this call.

    Where others will pass `again` after them, the system keeps what was read.
    """
    band = audit.bands.get(reading.layer, pair.NoiseBand())
    stream = experts.stream(again=again)
    with audit.clock.phase("attention and routing"):
        attend(audit, layers, part, shared)
        passages = [
            Passage(audit.sides, layers, n, audit.batches[n], audit.scope, experts, shared, audit.group)
            for n in part
        ]
    with closing(stream):  # reading ends before its threads do, whatever happens
        for expert in audit.clock.waiting("waiting for experts", stream):
            with audit.clock.phase("experts"):
                for passage in passages:
                    passage.add(expert)
    with audit.clock.phase("exchanging"):
        experts.record()
        for passage in passages:
            passage.exchange(identical=experts.identical)
    passages = [passage for passage in passages if audit.group.owns(passage.number)]
    while passages:
        passage = passages.pop(0)
        with audit.clock.phase("readings"):
            passage.read(reading, band)
        if audit.measures_noise and passage.pairs:
            reading.noise(score_changes(*passage.routings))
        with audit.clock.phase("attention and routing"):
            passage.finish()


def attend(audit: Walk, layers: Sequence[LayerSpec], part: Sequence[int], shared: Shared) -> None:
    """Take this process's batches through whatever stands in front of the block."""
    for number in filter(audit.group.owns, part):
        for side, layer in zip(audit.sides[:1] if shared.view else audit.sides, layers, strict=False):
            side.states[number] = side.replay.attention(layer, side.weights, side.states[number])
        if shared.view:
            audit.sides[1].states[number] = audit.sides[0].states[number]


def what_is_shared(
    audit: Walk, layers: Sequence[LayerSpec], facts: dict[str, Any], experts: LayerExperts
) -> Shared:
    """What the tuned checkpoint need not compute again at this layer."""
    if not audit.alike or layers[0].describe() != layers[1].describe():
        return Shared()
    return Shared(
        view=audit.in_step and all_same(audit, layers) and experts.match_E is None,
        gate=facts["exact"]["gain"],
        routing=facts["exact"]["router"],
    )


def all_same(audit: Walk, layers: Sequence[LayerSpec]) -> bool:
    """Whether every tensor of the layer at hand, routed experts aside, is the base's own."""
    base, tuned = (side.resident for side in audit.sides)
    return all(same_bytes(base[ref.role], tuned[ref.role]) for ref in layers[0].refs)


def layer_facts(audit: Walk, layers: Sequence[LayerSpec]) -> dict[str, Any]:
    """What is known of a layer before a token passes: its shape, its assumptions, and what equal values make exact."""
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
    """Which inputs of this layer hold the same values, so that what depends on nothing else is exactly 0."""
    base, tuned = audit.sides
    router = {ref.role for ref in layers[0].refs if ref.kind in ("router", "selection_bias")}
    gains = {ref.role for ref in layers[0].refs if ref.role.startswith("pre_ffn_norm")}
    before = {ref.role for ref in layers[0].refs if ref.kind in ("attention", "norm", "other")} - gains
    same = {role: same_bytes(base.resident[role], tuned.resident[role]) for role in router | gains | before}
    gain = all(same[role] for role in gains)
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
    for rank, other in enumerate(audit.group.bring(reading)):
        if rank != audit.group.rank:
            reading.join(other)
    if not audit.group.leads:
        return
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
        rows = [
            router_rows(side.resident, layer).rows_ED for side, layer in zip(audit.sides, layers, strict=True)
        ]
        facts["changes"] = {"experts": experts.changes, "router_rows": changes_of_rows(*rows)}
        audit.evidence.identity.append(
            layer_identity(
                layers[0].index,
                experts.sketches(0),
                experts.sketches(1),
                experts.match_E,
                (experts.clones(0), experts.clones(1)),
                (experts.initialised(0), experts.initialised(1)),
                (experts.zeroed(0), experts.zeroed(1)),
            )
        )
    if audit.chart_maps:
        for index, side in enumerate(audit.sides):
            facts["assumptions"][side.name]["chart_maps"] = experts.chart_maps(index, audit.chart_maps)
    audit.evidence.layers.append(facts)
