"""What the audit keeps of every expert adds up to what the model itself adds, bit for bit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.geometry.fields import chunking
from moe_atlas.geometry.fields.single_fields import NativeFields
from moe_atlas.loading.load import load_all
from moe_atlas.loading.registry import resolve
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.replay import model
from moe_atlas.replay.model import Replay
from scripts.oracle import tiny
from tests.support import pairs


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "llama4_text", "gpt_oss"])
@torch.inference_mode()
def test_the_routed_sum_is_the_models_own(family, tmp_path):
    """In bfloat16, where the order of the experts shows; a third of the tokens is measured, the others are not."""
    checkpoint = open_checkpoint(tiny.save(family, tmp_path / family, seed=3))
    spec = resolve(checkpoint)
    layer = next(layer for layer in spec.layers if layer.moe)
    reader, replay = Reader(checkpoint), Replay(spec, dtype=torch.bfloat16)
    weights = load_all(reader, layer.refs)
    x_TD = torch.randn(60, spec.width, generator=torch.Generator().manual_seed(1)).bfloat16()
    gate = replay.gate_input(layer, weights, x_TD)
    routing = replay.route(layer, weights, gate, torch.zeros(0, dtype=torch.int64))
    measured_M = torch.arange(0, 60, 3)
    partner_M = torch.full((20,), -1)
    fields = NativeFields(replay, layer, gate, routing, measured_M, partner_M, everyone=False)
    for expert in range(layer.moe.router.experts):
        fields.add(expert, load_all(reader, expert_refs(layer.moe, expert)))
    assert torch.equal(fields.routed_sum(), replay.routed(reader, layer, gate, routing))


def test_geometry_in_many_threads_moves_no_bit(tmp_path, monkeypatch):
    base = tiny.save("qwen3_moe", tmp_path / "base", seed=3)
    tuned = pairs.variant(base, tmp_path / "tuned", pairs.jitter(1e-2, lambda name: True))
    probe = pairs.probe(tmp_path / "probe", documents=6)
    monkeypatch.setattr(chunking, "CHUNK", 100)
    _, alone = pairs.audited(base, tuned, probe)
    monkeypatch.setattr(chunking, "torch", SimpleNamespace(**{**vars(torch), "get_num_threads": lambda: 5}))
    _, several = pairs.audited(base, tuned, probe)
    assert alone.keys() == several.keys()
    for name, values in alone.items():
        assert values.tobytes() == several[name].tobytes(), name


def test_an_experts_rows_are_filled_up_and_cut_again(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(tiny.save("qwen3_moe", tmp_path / "base", seed=3))
    spec = resolve(checkpoint)
    layer, seen = spec.layers[-1], []
    plain = model.feed_forward
    monkeypatch.setattr(model, "feed_forward", lambda f, w, x: (seen.append(len(x)), plain(f, w, x))[1])
    replay = Replay(spec, dtype=torch.float32)
    weights = load_all(Reader(checkpoint), expert_refs(layer.moe, 1))
    g_TD, tokens_P = torch.randn(40, spec.width), torch.arange(3, 40, 2)
    u_PD = replay.expert(layer, weights, g_TD, tokens_P, torch.ones(19))
    assert seen == [32]
    assert torch.allclose(u_PD, plain(layer.moe.experts, weights, g_TD[tokens_P]), atol=1e-6)
