"""The chunked recurrences against the same recurrences token by token, in float64, over several chunks."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_atlas.models.mixers import Lightning, Norm
from moe_atlas.models.names import DECAYS
from moe_atlas.replay.mixers.gated_delta import CHUNK, delta_rule
from moe_atlas.replay.mixers.kimi_delta import channel_delta_rule
from moe_atlas.replay.mixers.lightning import decayed_attention, decays
from moe_atlas.replay.mixers.mamba import state_space
from moe_atlas.replay.mixers.mamba1 import selective_scan
from scripts.oracle import tiny
from scripts.oracle.parity import replayed

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


@pytest.mark.parametrize("block", [1, 16, 64, 4 * LENGTH])
def test_lightning_attention_is_its_recurrence_with_the_decay_of_its_head(block):
    q, k, v = (random(2, 3, LENGTH, 4, seed=seed) for seed in (3, 5, 7))
    mixer = Lightning(heads=3, head_dim=4, block=block, slope=0.7, activation="silu", norm=Norm("rms", 1e-6))
    rate = 0.7 * torch.tensor([2.0 ** (-8 * head / 3) for head in (1, 2, 3)], dtype=torch.float64)
    state, expected = torch.zeros(2, 3, 4, 4, dtype=torch.float64), []
    for t in range(LENGTH):
        state = state * (-rate).exp()[:, None, None]
        state = state + torch.einsum("whk,whv->whkv", k[:, :, t].double(), v[:, :, t].double())
        expected.append(torch.einsum("whk,whkv->whv", q[:, :, t].double(), state))
    found = decayed_attention(q, k, v, block, **decays(mixer, torch.device("cpu")))
    assert torch.allclose(found.double(), torch.stack(expected, 2), atol=1e-4, rtol=1e-5)


def test_decays_that_are_not_stored_are_those_that_the_class_derives(tmp_path):
    folder = tiny.save("minimax", tmp_path / "m")
    kept = {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name.split(".")[-1] not in DECAYS
    }
    assert len(kept) == len(load_file(folder / "model.safetensors")) - 2 * len(DECAYS)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    expected = tiny.oracle(tiny.load_reference(folder), tiny.tokens())
    logits, _ = replayed(*tiny.open_tiny(folder), tiny.tokens(), torch.float32, "float32")
    assert (logits - expected.logits).abs().max() < 1e-4


def test_selective_scan_is_its_recurrence():
    x, step = random(2, LENGTH, 5, seed=0), random(2, LENGTH, 5, seed=1).abs()
    b, c, rate = random(2, LENGTH, 4, seed=2), random(2, LENGTH, 4, seed=3), -random(5, 4, seed=4).abs()
    expected = torch.zeros(2, LENGTH, 5, dtype=torch.float64)
    for window, channel in [(w, i) for w in range(2) for i in range(5)]:
        state = torch.zeros(4, dtype=torch.float64)
        for t in range(LENGTH):
            taken = (step[window, t, channel].double() * x[window, t, channel]) * b[window, t].double()
            state = state * (rate[channel].double() * step[window, t, channel]).exp() + taken
            expected[window, t, channel] = state @ c[window, t].double()
    assert torch.allclose(selective_scan(x, step, rate, b, c).double(), expected, atol=2e-5)
