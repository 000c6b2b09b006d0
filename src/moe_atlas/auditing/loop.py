"""The main loop of an audit: replay both checkpoints layer by layer, with one layer and a few experts in memory.

At every routed layer, the loop measures the routed object of each checkpoint at its own states, and of the pair at the
base's canonical states. All later steps (windows, intervals, verdict) need no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

import torch

from moe_atlas.auditing import embedding_and_head
from moe_atlas.auditing.cost.memory import trim_heap
from moe_atlas.auditing.layer.batch_pass import BatchPass, Reuse
from moe_atlas.auditing.layer.batches import layer_passes
from moe_atlas.auditing.layer.expert_source import ExpertSource
from moe_atlas.auditing.layer.expert_stream import LayerExperts
from moe_atlas.auditing.layer.measurements import LayerMeasurements
from moe_atlas.auditing.layer.noise_floor import score_changes
from moe_atlas.auditing.layer.prefetch import low_priority_pool
from moe_atlas.auditing.recording import record_weights
from moe_atlas.auditing.walk import Evidence, Walk
from moe_atlas.geometry import assumptions, pair
from moe_atlas.models.spec import LayerSpec
from moe_atlas.probes.windows import Window
from moe_atlas.weights.comparison import row_changes
from moe_atlas.weights.identity import layer_identity
from moe_atlas.weights.values import same_bytes


@torch.inference_mode()
def replay_layers(walk: Walk, windows: Sequence[Window]) -> Evidence:
    """Replay the probe windows through every layer of each checkpoint, and collect the evidence."""
    with ExitStack() as threads:  # reading threads end before hashing threads
        for side in walk.sides:
            threads.enter_context(side.reader.hashing_behind(low_priority_pool(1)))
        for reads in (*(side.loader for side in walk.sides), walk.pool):
            threads.enter_context(reads)
        walk_layers(walk, windows)
    return walk.evidence


def walk_layers(walk: Walk, windows: Sequence[Window]) -> None:
    """Walk from the embedding, or from the saved state of an interrupted audit, to the output."""
    sides = walk.sides
    depth = len(sides[0].spec.layers)
    done = walk.resume.restore(walk)
    walk.progress.phase("replaying layers", depth - done)
    if not done:
        with walk.clock.phase("reading the rest"):
            embedding_and_head.embed(walk)
    for number in range(done, depth):
        layers = [side.spec.layers[number] for side in sides]
        walk.load([layer.refs for layer in layers])
        (routed_layer if layers[0].moe else dense_layer)(walk, layers)
        trim_heap()
        walk.resume.save(walk, number + 1)
        walk.progress.step(f"layer {layers[0].index}", sum(side.reader.bytes_read for side in sides))
    embedding_and_head.outputs(walk, windows)


def dense_layer(walk: Walk, layers: Sequence[LayerSpec]) -> None:
    """Replay a layer without router; the audit measures nothing there."""
    record_weights(walk, layers[0].index, [layer.refs for layer in layers])
    walk.share_equal()
    comparable = walk.in_step and layers[0].describe() == layers[1].describe()
    walk.in_step = comparable and equal_residents(walk, layers)
    for number in walk.own_batches:
        for side, layer in zip(walk.sides[:1] if walk.in_step else walk.sides, layers, strict=False):
            x_WSD = side.replay.attention(layer, side.weights, side.states[number])
            side.states[number] = side.replay.dense(layer, side.weights, x_WSD)
        if walk.in_step:
            walk.sides[1].states[number] = walk.sides[0].states[number]


def routed_layer(walk: Walk, layers: Sequence[LayerSpec]) -> None:
    """Replay and measure a routed layer: in each pass a few batches, and for these batches one expert at a time.

    After a consistent relabelling, the tuned checkpoint is replayed in the base's numbering. Then the arithmetic is the
    same as without the relabelling, so a pure relabelling gives exactly 0 and changes no verdict.
    """
    source = ExpertSource(walk.sides, layers, walk.group)
    experts = LayerExperts(source, walk.evidence.ledger, walk.pool, walk.group, depth=walk.read_ahead)
    as_stored = {} if source.match_E is None else walk.sides[1].renumber(layers[1], source.match_E)
    record_weights(walk, layers[0].index, [layer.refs for layer in layers], as_stored)
    walk.share_equal()
    facts = layer_facts(walk, layers)
    measurements = LayerMeasurements(
        layers[0].index, facts, walk.scope.stride, keeps_tokens=walk.keeps_tokens
    )
    reuse = reusable(walk, layers, facts, source)
    *earlier, last = layer_passes(walk.batches, walk.held_tokens)
    for numbers in earlier:
        run_pass(walk, layers, numbers, experts, reuse, measurements, more_passes=True)
    run_pass(walk, layers, last, experts, reuse, measurements)
    walk.in_step = reuse.view and experts.identical
    close_layer(walk, measurements, experts, layers)


def run_pass(
    walk: Walk,
    layers: Sequence[LayerSpec],
    numbers: Sequence[int],
    experts: LayerExperts,
    reuse: Reuse,
    measurements: LayerMeasurements,
    *,
    more_passes: bool = False,
) -> None:
    """Take some batches through one layer; only their states stay in memory afterwards.

    With `more_passes`, reads go through the system's page cache, for the passes that follow.
    """
    band = walk.bands.get(measurements.layer, pair.NoiseBand())
    stream = experts.stream(more_passes=more_passes)
    with walk.clock.phase("attention and routing"):
        attend(walk, layers, numbers, reuse)
        passes = [
            BatchPass(walk.sides, layers, n, walk.batches[n], walk.scope, experts, reuse, walk.group)
            for n in numbers
        ]
    with closing(stream):  # all reads end before their threads do, whatever happens
        for expert in walk.clock.timed("waiting for experts", stream):
            with walk.clock.phase("experts"):
                for batch_pass in passes:
                    batch_pass.add(expert)
    with walk.clock.phase("exchanging"):
        experts.record()
        for batch_pass in passes:
            batch_pass.exchange(identical=experts.identical)
    passes = [batch_pass for batch_pass in passes if walk.group.owns(batch_pass.number)]
    while passes:  # each pass is freed before the next is measured
        finish_pass(walk, passes.pop(0), measurements, band)


def finish_pass(
    walk: Walk, batch_pass: BatchPass, measurements: LayerMeasurements, band: pair.NoiseBand
) -> None:
    """Measure one batch and compute its state after the layer."""
    with walk.clock.phase("readings"):
        batch_pass.measure(measurements, band)
    if walk.measures_noise and batch_pass.pairs:
        measurements.add_noise(score_changes(*batch_pass.routings))
    with walk.clock.phase("attention and routing"):
        batch_pass.finish()


def attend(walk: Walk, layers: Sequence[LayerSpec], numbers: Sequence[int], reuse: Reuse) -> None:
    """Take this process's batches through the mixer in front of the block."""
    for number in filter(walk.group.owns, numbers):
        for side, layer in zip(walk.sides[:1] if reuse.view else walk.sides, layers, strict=False):
            side.states[number] = side.replay.attention(layer, side.weights, side.states[number])
        if reuse.view:
            walk.sides[1].states[number] = walk.sides[0].states[number]


def reusable(walk: Walk, layers: Sequence[LayerSpec], facts: dict[str, Any], source: ExpertSource) -> Reuse:
    """Return the results of the base that the tuned checkpoint can reuse at this layer."""
    if not walk.same_arithmetic or layers[0].describe() != layers[1].describe():
        return Reuse()
    return Reuse(
        view=walk.in_step and equal_residents(walk, layers) and source.match_E is None,
        gate=facts["exact"]["gain"],
        routing=facts["exact"]["router"],
    )


def equal_residents(walk: Walk, layers: Sequence[LayerSpec]) -> bool:
    """Return whether both checkpoints have equal tensors in this layer, the routed experts aside."""
    base, tuned = (side.resident for side in walk.sides)
    return all(same_bytes(base[ref.role], tuned[ref.role]) for ref in layers[0].refs)


def layer_facts(walk: Walk, layers: Sequence[LayerSpec]) -> dict[str, Any]:
    """Return the facts that a layer's weights determine: shape, assumptions, and quantities that are exactly 0."""
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
        facts["exact"] = exact_inputs(walk, layers)
    return facts


def exact_inputs(walk: Walk, layers: Sequence[LayerSpec]) -> dict[str, bool]:
    """Return which inputs of this layer have equal values, so that quantities of these inputs alone are exactly 0."""
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
    walk: Walk, measurements: LayerMeasurements, experts: LayerExperts, layers: Sequence[LayerSpec]
) -> None:
    """Turn the layer's measurements into arrays and facts, in the leading process."""
    for rank, other in enumerate(walk.group.gather_to_leader(measurements)):
        if rank != walk.group.rank:
            measurements.merge(other)
    if not walk.group.leads:
        return
    walk.evidence.arrays |= measurements.arrays()
    facts = measurements.facts
    for side in walk.sides:
        ratio_W = walk.evidence.arrays.pop(f"layers.{measurements.layer}.{side.name}.radial_to_tangent", None)
        facts["assumptions"][side.name]["radial_to_tangent"] = assumptions.radial_mean(ratio_W)
    if len(walk.sides) == 2:
        add_pair_facts(walk, facts, experts, layers)
    if walk.chart_maps:
        for number, side in enumerate(walk.sides):
            chart_maps = experts.source.chart_maps(number, walk.chart_maps)
            facts["assumptions"][side.name]["chart_maps"] = chart_maps
    walk.evidence.layers.append(facts)


def add_pair_facts(
    walk: Walk, facts: dict[str, Any], experts: LayerExperts, layers: Sequence[LayerSpec]
) -> None:
    """Add the changes of experts and router rows to the layer's facts, and expert identity to the evidence."""
    # The output of an expert weighted on its input depends on the router.
    weights_input = layers[0].routed.weight_on_input
    facts["exact"]["experts"] = experts.identical and (facts["exact"]["router"] or not weights_input)
    rows = [router_rows.rows_ED for router_rows in experts.source.router_rows()]
    facts["changes"] = {"experts": experts.changes, "router_rows": row_changes(*rows)}
    identity = layer_identity(layers[0].index, experts.traits(0), experts.traits(1), experts.source.match_E)
    walk.evidence.identity.append(identity)
