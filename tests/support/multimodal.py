"""The text model inside a multimodal checkpoint: is it replayed as its class computes it, and judged by its weights?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from moe_atlas.results import Receipt
from scripts.oracle import tiny
from scripts.oracle.parity import by_expert, replayed, tie_free_tokens


def same_as_class(model: Any, folder: Path, dtype: torch.dtype, family: str, routed: set[int]) -> None:
    """Assert that sets, weights and logits of the replay are those of `model`, which was loaded from `folder`."""
    tokens = tie_free_tokens(folder, dtype)
    expected = tiny.oracle(model, tokens)
    spec, reader = tiny.open_tiny(folder)
    logits, routings = replayed(spec, reader, tokens, dtype, "native")
    assert spec.family == family
    assert expected.sets.keys() == routings.keys() == routed
    for layer, routing in routings.items():
        ours = by_expert(routing.topk_TK, routing.weights_TK)
        theirs = by_expert(expected.sets[layer], expected.weights[layer])
        assert torch.equal(ours[0], theirs[0])
        assert (ours[1] - theirs[1]).abs().max() < 1e-6
    assert expected.logits.std() > 0.1
    assert (logits - expected.logits).abs().max() < (1e-5 if dtype == torch.float32 else 1e-30)


def judged_by_weights(made: Receipt, verdict: str) -> None:
    """Assert the verdict of a receipt, and that the rule for parts outside the replay decided it."""
    assert made.verdict == verdict
    evidence = made.body["predicates"]["protected_atlas_rewrite"]["evidence"]
    row = next(row for row in evidence if row["gate"] == "unreplayed")
    assert (row["part"], row["result"]) == ("modalities", verdict)
