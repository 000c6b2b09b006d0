"""The audit's hot loop: both checkpoints, layer by layer, no more than one layer and a few experts at a time.

At every routed layer it reads the routed object of each checkpoint at its own states, and of the pair at the
base's canonical states; everything else (windows to intervals to verdict) happens without weights, later.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

import torch

from moe_atlas.auditing import embedding_and_head
from moe_atlas.auditing.cost.memory import give_back
from moe_atlas.auditing.layer.batch_pass import Passage, Shared
from moe_atlas.auditing.layer.batches import rounds
from moe_atlas.auditing.layer.expert_stream import LayerExperts, router_rows
from moe_atlas.auditing.layer.noise_floor import score_changes
from moe_atlas.auditing.layer.prefetch import background
from moe_atlas.auditing.layer.reading import LayerReading
from moe_atlas.auditing.recording import record_weights
from moe_atlas.auditing.walk import Evidence, Walk
from moe_atlas.geometry import assumptions, pair
from moe_atlas.models.spec import LayerSpec
from moe_atlas.probes.windows import Window
from moe_atlas.weights.comparison import changes_of_rows
from moe_atlas.weights.identity import layer_identity
from moe_atlas.weights.values import same_bytes


@torch.inference_mode()
def replay_layers(walk: Walk, windows: Sequence[Window]) -> Evidence:
    """Replay the probe windows through every layer of each checkpoint and read what the contract asks for."""
    with ExitStack() as threads:  # whoever reads ends before whoever hashes
        for side in walk.sides:
            threads.enter_context(side.reader.hashing_behind(background(1)))
        for reads in (*(side.loader for side in walk.sides), walk.pool):
            threads.enter_context(reads)
        layers_and_outputs(walk, windows)
    return walk.evidence


def layers_and_outputs(walk: Walk, windows: Sequence[Window]) -> None:
    """From the tokens, or from where an interrupted audit stood, to the last logit."""
    sides = walk.sides
    depth = len(sides[0].spec.layers)
    done = walk.resume.restore(walk)
    walk.progress.phase("replaying layers", depth - done)
    if not done:
        with walk.clock.phase("reading the rest"):
            embedding_and_head.embed(walk)
    for number in range(done, depth):
        layers = [side.spec.layers[number] for side in sides]
        walk.enter([layer.refs for layer in layers])
        (routed_layer if layers[0].moe else dense_layer)(walk, layers)
        give_back()
        walk.resume.save(walk, number + 1)
        walk.progress.step(f"layer {layers[0].index}", sum(side.reader.bytes_read for side in sides))
    embedding_and_head.outputs(walk, windows)


def dense_layer(walk: Walk, layers: Sequence[LayerSpec]) -> None:
    """Replayed, not measured."""
    record_weights(walk, layers[0].index, [layer.refs for layer in layers])
    walk.settle()
    alike = walk.in_step and layers[0].describe() == layers[1].describe()
    walk.in_step = alike and all_same(walk, layers)
    for number in walk.own:
        for side, layer in zip(walk.sides[:1] if walk.in_step else walk.sides, layers, strict=False):
            x_WSD = side.replay.attention(layer, side.weights, side.states[number])
            side.states[number] = side.replay.dense(layer, side.weights, x_WSD)
        if walk.in_step:
            walk.sides[1].states[number] = walk.sides[0].states[number]


def routed_layer(walk: Walk, layers: Sequence[LayerSpec]) -> None:
    """Read the routed object of one layer: a few batches at a time, and for them one expert at a time.

    After a consistent relabelling the tuned checkpoint is read in the base's numbering throughout, so that the very
    same arithmetic runs as without it: a pure relabelling is exactly 0, and moves no verdict.
    """
    experts = LayerExperts(walk.sides, layers, walk.evidence.ledger, walk.pool, walk.group, depth=walk.depth)
    as_stored = {} if experts.match_E is None else walk.sides[1].renumber(layers[1], experts.match_E)
    record_weights(walk, layers[0].index, [layer.refs for layer in layers], as_stored)
    walk.settle()
    reading = LayerReading(layers[0].index, layer_facts(walk, layers), walk.scope.stride)
    shared = what_is_shared(walk, layers, reading.facts, experts)
    *before, last = rounds(walk.batches, walk.held_tokens)
    for part in before:
        pass_together(walk, layers, part, experts, shared, reading, again=True)
    pass_together(walk, layers, last, experts, shared, reading)
    walk.in_step = shared.view and experts.identical
    close_layer(walk, reading, experts, layers)


def pass_together(
    walk: Walk,
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
    band = walk.bands.get(reading.layer, pair.NoiseBand())
    stream = experts.stream(again=again)
    with walk.clock.phase("attention and routing"):
        attend(walk, layers, part, shared)
        passages = [
            Passage(walk.sides, layers, n, walk.batches[n], walk.scope, experts, shared, walk.group)
            for n in part
        ]
    with closing(stream):  # reading ends before its threads do, whatever happens
        for expert in walk.clock.waiting("waiting for experts", stream):
            with walk.clock.phase("experts"):
                for passage in passages:
                    passage.add(expert)
    with walk.clock.phase("exchanging"):
        experts.record()
        for passage in passages:
            passage.exchange(identical=experts.identical)
    passages = [passage for passage in passages if walk.group.owns(passage.number)]
    while passages:
        passage = passages.pop(0)
        with walk.clock.phase("readings"):
            passage.read(reading, band)
        if walk.measures_noise and passage.pairs:
            reading.noise(score_changes(*passage.routings))
        with walk.clock.phase("attention and routing"):
            passage.finish()


def attend(walk: Walk, layers: Sequence[LayerSpec], part: Sequence[int], shared: Shared) -> None:
    """Take this process's batches through whatever stands in front of the block."""
    for number in filter(walk.group.owns, part):
        for side, layer in zip(walk.sides[:1] if shared.view else walk.sides, layers, strict=False):
            side.states[number] = side.replay.attention(layer, side.weights, side.states[number])
        if shared.view:
            walk.sides[1].states[number] = walk.sides[0].states[number]


def what_is_shared(
    walk: Walk, layers: Sequence[LayerSpec], facts: dict[str, Any], experts: LayerExperts
) -> Shared:
    """What the tuned checkpoint need not compute again at this layer."""
    if not walk.alike or layers[0].describe() != layers[1].describe():
        return Shared()
    return Shared(
        view=walk.in_step and all_same(walk, layers) and experts.match_E is None,
        gate=facts["exact"]["gain"],
        routing=facts["exact"]["router"],
    )


def all_same(walk: Walk, layers: Sequence[LayerSpec]) -> bool:
    """Whether every tensor of the layer at hand, routed experts aside, is the base's own."""
    base, tuned = (side.resident for side in walk.sides)
    return all(same_bytes(base[ref.role], tuned[ref.role]) for ref in layers[0].refs)


def layer_facts(walk: Walk, layers: Sequence[LayerSpec]) -> dict[str, Any]:
    """What is known of a layer before a token passes: its shape, its assumptions, and what equal values make exact."""
    facts: dict[str, Any] = {"layer": layers[0].index, "protected": layers[0].index in walk.protected}
    moe = layers[0].routed
    facts |= {"experts": moe.router.experts, "top_k": moe.router.top_k, "assumptions": {}}
    facts["undefined"] = assumptions.undefined(moe)
    for side, layer in zip(walk.sides, layers, strict=True):
        gain_D = assumptions.effective_gain(layer, side.weights)
        facts["assumptions"][side.name] = assumptions.structural(layer.routed, side.spec.width) | {
            "gain_anisotropy": assumptions.gain_anisotropy(gain_D)
        }
        facts[side.name] = {}
    if len(walk.sides) == 2:
        facts["exact"] = exactness(walk, layers)
    return facts


def exactness(walk: Walk, layers: Sequence[LayerSpec]) -> dict[str, bool]:
    """Which inputs of this layer hold the same values, so that what depends on nothing else is exactly 0."""
    base, tuned = walk.sides
    router = {ref.role for ref in layers[0].refs if ref.kind in ("router", "selection_bias")}
    gains = {ref.role for ref in layers[0].refs if ref.role.startswith("pre_ffn_norm")}
    before = {ref.role for ref in layers[0].refs if ref.kind in ("attention", "norm", "other")} - gains
    same = {role: same_bytes(base.resident[role], tuned.resident[role]) for role in router | gains | before}
    gain = all(same[role] for role in gains)
    equal_spec = layers[0].describe() == layers[1].describe()
    return {
        "states": walk.states_identical(layers[0].index) and equal_spec and all(same[r] for r in before),
        "gain": gain,
        "router": gain and equal_spec and all(same[role] for role in router),
    }


def close_layer(
    walk: Walk, reading: LayerReading, experts: LayerExperts, layers: Sequence[LayerSpec]
) -> None:
    """Turn the layer's tokens into window arrays and its experts into an account of their identity."""
    for rank, other in enumerate(walk.group.bring(reading)):
        if rank != walk.group.rank:
            reading.join(other)
    if not walk.group.leads:
        return
    walk.evidence.arrays |= reading.arrays()
    facts = reading.facts
    for side in walk.sides:
        name = f"layers.{reading.layer}.{side.name}.radial_to_tangent"
        facts["assumptions"][side.name]["radial_to_tangent"] = assumptions.radial_mean(
            walk.evidence.arrays.pop(name, None)
        )
    if len(walk.sides) == 2:
        # An expert weighted on its input moves with the router.
        facts["exact"]["experts"] = experts.identical and (
            facts["exact"]["router"] or not layers[0].routed.weight_on_input
        )
        rows = [
            router_rows(side.resident, layer).rows_ED for side, layer in zip(walk.sides, layers, strict=True)
        ]
        facts["changes"] = {"experts": experts.changes, "router_rows": changes_of_rows(*rows)}
        walk.evidence.identity.append(
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
    if walk.chart_maps:
        for index, side in enumerate(walk.sides):
            facts["assumptions"][side.name]["chart_maps"] = experts.chart_maps(index, walk.chart_maps)
    walk.evidence.layers.append(facts)
