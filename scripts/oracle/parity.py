"""One comparison of the replay with transformers, shared by the tests and by `make parity`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe_atlas.loading.load import ReaderLike
from moe_atlas.models.mixers import Precision
from moe_atlas.models.spec import LayerSpec, ModelSpec
from moe_atlas.replay.model import GateInput, Replay
from moe_atlas.replay.router import Routing
from scripts.oracle import tiny


@dataclass
class Difference:
    """How far the replay is from the reference."""

    logits: float
    """Largest absolute difference of the logits."""
    exact: bool
    """Whether the logits are bitwise equal."""
    scale: float
    """Standard deviation of the reference logits."""
    sets: int
    """Routing decisions whose set differs."""
    weights: float
    """Largest absolute difference of the combine weights, over equal sets."""
    layers: int
    """Routed layers compared; differs from the model's own number when a router was not observed."""


def replayed(
    spec: ModelSpec, reader: ReaderLike, tokens: Tensor, dtype: torch.dtype, arithmetic: Precision
) -> tuple[Tensor, dict[int, Routing]]:
    """Logits and every routing of our forward pass."""
    routings: dict[int, Routing] = {}

    def observe(layer: LayerSpec, gate: GateInput, routing: Routing) -> None:
        routings[layer.index] = routing

    return Replay(spec, dtype=dtype, router_arithmetic=arithmetic).forward(reader, tokens, observe), routings


def tie_free_tokens(folder: Path, dtype: torch.dtype) -> Tensor:
    """Probe tokens on which no router meets equal scores: there the reference picks arbitrarily."""
    for seed in range(20):
        tokens = tiny.tokens(seed=seed)
        _, routings = replayed(*tiny.open_tiny(folder), tokens, dtype, "native")
        if not any(routing.ties_T.any() for routing in routings.values()):
            return tokens
    raise AssertionError("every seed ties somewhere")


def compare(folder: Path, dtype: torch.dtype = torch.float32, arithmetic: Precision = "native") -> Difference:
    """Compare one saved checkpoint, token by token and layer by layer."""
    tokens = tie_free_tokens(folder, dtype)
    expected = tiny.oracle(tiny.load_reference(folder, dtype), tokens)
    spec, reader = tiny.open_tiny(folder)
    logits, routings = replayed(spec, reader, tokens, dtype, arithmetic)
    sets, weights = 0, 0.0
    for layer in expected.sets.keys() & routings.keys():
        ours = by_expert(routings[layer].topk_TK, routings[layer].weights_TK)
        theirs = by_expert(expected.sets[layer], expected.weights[layer])
        same = (ours[0] == theirs[0]).all(-1)
        sets += int((~same).sum())
        weights = max(weights, float((ours[1] - theirs[1])[same].abs().max()))
    return Difference(
        logits=float((logits - expected.logits).abs().max()),
        exact=torch.equal(logits, expected.logits),
        scale=float(expected.logits.std()),
        sets=sets,
        weights=weights,
        layers=len(expected.sets) if expected.sets.keys() == routings.keys() else -1,
    )


def by_expert(ids_TK: Tensor, weights_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Sets sorted by expert id, weights alike."""
    order = ids_TK.argsort(-1)
    return ids_TK.gather(-1, order), weights_TK.gather(-1, order)
