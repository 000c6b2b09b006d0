"""The logarithm of the gate probability against the probability itself, and far beyond where that underflows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moe_atlas.geometry.overlap import log_gate_probability
from moe_atlas.replay.router import gate_probability
from scripts.oracle import tiny


@pytest.fixture(scope="module")
def router(tmp_path_factory):
    spec, _ = tiny.open_tiny(tiny.save("qwen3_moe", tmp_path_factory.mktemp("gate") / "m"))
    return spec.layers[0].moe.router


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_it_is_the_logarithm_of_what_the_router_measures(router, score):
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 8
    named = replace(router, score=score)
    assert torch.allclose(
        log_gate_probability(named, logits), gate_probability(named, logits).log(), rtol=1e-12
    )


@pytest.mark.parametrize(("score", "slope"), [("softmax", 1.0), ("sigmoid", 1.0), ("sqrtsoftplus", 0.5)])
def test_it_does_not_underflow(router, score, slope):
    logits = torch.tensor([[-1000.0, -3000.0]], dtype=torch.float64)
    found = log_gate_probability(replace(router, score=score), logits)[0]
    assert float(found[0] - found[1]) == pytest.approx(2000.0 * slope, rel=1e-12)
