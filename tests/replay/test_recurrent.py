"""The chunked recurrences against the same recurrences token by token, in float64, over several chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_atlas.replay.mixers.gated_delta import CHUNK, delta_rule
from moe_atlas.replay.mixers.kimi_delta import channel_delta_rule
from moe_atlas.replay.mixers.mamba import state_space

LENGTH = 2 * CHUNK + 11


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [False, True])
def test_delta_rule_is_its_recurrence(channels):
    q, k, v = (
        random(2, LENGTH, 3, 4, seed=4),
        random(2, LENGTH, 3, 4, seed=9),
        random(2, LENGTH, 3, 6, seed=6),
    )
    shape = (2, LENGTH, 3, 4) if channels else (2, LENGTH, 3)
    decay, beta = -random(*shape, seed=1).abs() / 10, random(2, LENGTH, 3, seed=2).sigmoid()
    unit = [x.double() / torch.sqrt((x.double() ** 2).sum(-1, keepdim=True) + 1e-6) for x in (q, k)]
    state, expected = torch.zeros(2, 3, 4, 6, dtype=torch.float64), []
    for t in range(LENGTH):
        factor = decay[:, t].double().exp()
        state = state * (factor[..., None] if channels else factor[..., None, None])
        held = torch.einsum("whkv,whk->whv", state, unit[1][:, t])
        correction = beta[:, t, :, None].double() * (v[:, t].double() - held)
        state = state + torch.einsum("whk,whv->whkv", unit[1][:, t], correction)
        expected.append(torch.einsum("whkv,whk->whv", state, unit[0][:, t]) / 2)
    found = (channel_delta_rule if channels else delta_rule)(q, k, v, decay, beta)
    assert torch.allclose(found.double(), torch.stack(expected, 1), atol=1e-5)


def test_state_space_is_its_recurrence():
    x, step = random(2, LENGTH, 3, 5, seed=0), random(2, LENGTH, 3, seed=1).abs()
    b, c, rate = random(2, LENGTH, 3, 4, seed=2), random(2, LENGTH, 3, 4, seed=3), -random(3, seed=4).abs()
    state, expected = torch.zeros(2, 3, 4, 5, dtype=torch.float64), []
    for t in range(LENGTH):
        state = state * (rate.double() * step[:, t].double()).exp()[..., None, None]
        taken = step[:, t, :, None].double() * x[:, t].double()
        state = state + torch.einsum("whn,whp->whnp", b[:, t].double(), taken)
        expected.append(torch.einsum("whnp,whn->whp", state, c[:, t].double()))
    found = state_space(x, step, rate, b, c)
    assert torch.allclose(found.double(), torch.stack(expected, 1), atol=2e-5)
