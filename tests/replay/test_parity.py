"""Our forward pass against transformers: logits, routed sets and combine weights of every token and layer."""

from __future__ import annotations

import pytest
import torch

from scripts.oracle import tiny
from scripts.oracle.parity import compare


@pytest.mark.parametrize("arithmetic", ["float32", "native"])
@pytest.mark.parametrize("case", tiny.FAST)
def test_float32_matches_transformers(case, arithmetic, tiny_checkpoint):
    difference = compare(tiny_checkpoint(case), torch.float32, arithmetic)
    assert difference.scale > 0.1, "the case must have something to get wrong"
    assert difference.layers > 0, "every router of the reference must have been observed"
    assert difference.logits < 1e-4
    assert difference.sets == 0
    assert difference.weights < 1e-5


@pytest.mark.parametrize("case", [case for case in tiny.FAST if case not in tiny.INEXACT])
def test_bfloat16_is_bit_exact(case, tiny_checkpoint):
    difference = compare(tiny_checkpoint(case, torch.bfloat16), torch.bfloat16)
    assert difference.sets == 0
    assert difference.weights == 0
    assert difference.exact
