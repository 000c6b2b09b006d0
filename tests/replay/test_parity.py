"""Our forward pass against transformers: logits, routed sets and combine weights of every token and layer."""

from __future__ import annotations

import pytest
import torch
from tests import tiny

from moe_atlas.families.spec import LayerSpec
from moe_atlas.replay.model import GateInput, Replay
from moe_atlas.replay.router import Routing


def run(folder, dtype, arithmetic):
    """Logits and routings of the replay."""
    spec, reader = tiny.open_tiny(folder)
    routings: dict[int, Routing] = {}

    def observe(layer: LayerSpec, gate: GateInput, routing: Routing) -> None:
        routings[layer.index] = routing

    replay = Replay(spec, dtype=dtype, router_arithmetic=arithmetic)
    return replay.forward(reader, tiny.tokens(), observe), routings


def by_expert(ids_TK, weights_TK):
    """Sets sorted by expert id, weights alike."""
    order = ids_TK.argsort(-1)
    return ids_TK.gather(-1, order), weights_TK.gather(-1, order)


@pytest.mark.parametrize("arithmetic", ["float32", "native"])
@pytest.mark.parametrize("case", tiny.CASES)
def test_float32_matches_transformers(case, arithmetic, tiny_checkpoint):
    folder = tiny_checkpoint(case)
    expected = tiny.oracle(tiny.load_reference(folder), tiny.tokens())
    logits, routings = run(folder, torch.float32, arithmetic)
    assert expected.logits.std() > 0.1, "the case must have something to get wrong"
    assert (logits - expected.logits).abs().max() < 1e-4
    assert routings.keys() == expected.sets.keys()
    for layer, routing in routings.items():
        ours = by_expert(routing.topk_TK, routing.weights_TK)
        theirs = by_expert(expected.sets[layer], expected.weights[layer])
        assert torch.equal(ours[0], theirs[0])
        torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", tiny.CASES)
def test_bfloat16_is_bit_exact(case, tiny_checkpoint):
    folder = tiny_checkpoint(case, torch.bfloat16)
    expected = tiny.oracle(tiny.load_reference(folder, torch.bfloat16), tiny.tokens())
    logits, routings = run(folder, torch.bfloat16, "native")
    for layer, routing in routings.items():
        assert not routing.ties_T.any(), "equal scores: the reference picks arbitrarily, choose another seed"
        assert torch.equal(routing.topk_TK.sort(-1).values, expected.sets[layer].sort(-1).values)
    assert torch.equal(logits, expected.logits)
