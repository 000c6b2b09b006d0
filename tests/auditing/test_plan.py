"""A plan against what audits do: operations as torch counts them, bytes as the receipt, refusals alike."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moe_atlas.auditing import plan, run
from moe_atlas.auditing.cost import flops as work
from moe_atlas.auditing.cost import memory, throughput
from moe_atlas.auditing.cost.flops import TokenCounts
from moe_atlas.auditing.layer.batches import partition
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.cli import run as atlas
from moe_atlas.loading.registry import resolve
from moe_atlas.options import AuditOptions
from moe_atlas.replay.model import Replay
from moe_atlas.weights import identity
from scripts.oracle import tiny
from tests.support import pairs

CASES = ("qwen3_moe", "deepseek_v3", "gpt_oss", "llama4_text", "granitemoe")
ACTIVE = {"experts": "active", "token_stride": 2, "quantile": 0.9}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(throughput, "SECONDS", 0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("plan")


@pytest.fixture(scope="module", params=CASES)
def base(request, root):
    return tiny.save(request.param, root / request.param, seed=5)


def geometry(spec, tokens, everyone):
    """Operations of κ (all slots) and of two field norms (K + 1 and K slots) of both sides, and of V⁰ at the anchor."""
    total = 0
    for layer in spec.layers:
        if layer.moe:
            k, width = layer.moe.router.top_k, spec.width
            slots = k + 2 + (layer.moe.router.experts if everyone else 0)
            total += 2 * 2 * tokens * width * (slots**2 + k + 1 + k) + 2 * tokens * width * k
    return total


@pytest.mark.parametrize("which", ["active", "all"])
def test_operations_are_those_that_torch_counts(base, root, which, monkeypatch):
    """Of an A/A audit that skips nothing; comparing sketches is no part of it."""
    monkeypatch.setattr(identity, "distances", torch.cdist)
    # Rows that only fill up are not counted.
    monkeypatch.setattr(Replay, "padded_rows", staticmethod(lambda rows: rows))
    probe = pairs.probe(root / f"probe-{which}", documents=6, evaluation=ACTIVE | {"experts": which})
    with FlopCounterMode(display=False) as counter:
        pairs.audited(base, base, probe, skips=False)
    counted = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    found = plan.plan(base, base, probe, AuditOptions())
    by_token = counted["aten.mm"] + counted.get("aten.addmm", 0)
    assert by_token == found["flops"]["total"] - found["flops"]["attention"]
    spec, _ = tiny.open_tiny(base)
    read = geometry(spec, found["tokens"]["measured"], which == "all")
    assert counted["aten.bmm"] == found["flops"]["attention"] + read


def test_operations_by_hand(root):
    """D 32, 4 heads of 8 over 2, 2 layers, 8 experts of 12, top 3, vocabulary 48; windows of 5 and 3 tokens."""
    spec, _ = tiny.open_tiny(tiny.save("qwen3_moe", root / "hand", seed=5, head_dim=8))
    found = work.flops([spec, spec], TokenCounts([5, 3], 4, 6), everyone=False, requantised=True)
    expert = 2 * 3 * 32 * 12
    assert found == {
        "projections": 2 * (2 * 2 * 8 * (2 * 32 * 32 + 2 * 32 * 16 + 8 * 32) + 2 * 8 * 8 * 32),
        "attention": 2 * 2 * 2 * (25 + 9) * 4 * (8 + 8),
        "routed experts": 2 * 2 * 8 * 3 * expert,
        "competitors": 2 * 2 * 4 * 2 * expert,
        "anchored experts": 2 * 4 * 4 * expert,
        "requantised experts": 2 * 4 * 4 * expert,
        "head": 2 * 2 * 6 * 32 * 48,
    }


def test_experts_that_are_too_large_for_the_limit_are_not_read_ahead():
    mib = 1 << 20
    room = memory.Needs(fixed=400 * mib, expert=100 * mib, token=mib, vocabulary=0, batch=300)
    assert room.minimum == 900 * mib  # one evaluated, one being read
    for limit, depth, tokens in (
        (900, 0, 300),
        (999, 0, 399),
        (1000, 1, 300),
        (1100, 2, 300),
        (2000, 2, 1200),
    ):
        assert memory.read_ahead(limit * mib, room) == depth
        assert memory.held_tokens(limit * mib, room) == tokens
        assert room.peak(tokens, depth) <= limit * mib
    assert memory.read_ahead(None, room) == 2
    huge = memory.Needs(fixed=400 * mib, expert=1200 * mib, token=mib, vocabulary=0, batch=300)
    assert (memory.read_ahead(None, huge), memory.held_tokens(None, huge)) == (0, 300)


@pytest.mark.parametrize("held", [1, 10**9])
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "longcat_flash", "gpt_oss", "llama4_text"])
def test_bytes_are_those_of_the_receipt(family, root, held, monkeypatch):
    base = tiny.save(family, root / f"{family}-bytes", seed=5)
    probe = pairs.probe(root / "probe-bytes", documents=6)
    monkeypatch.setattr(memory, "held_tokens", lambda limit, room: held)
    for module in (run, plan):
        monkeypatch.setattr(module, "partition", partial(partition, limit=64))
    facts, _ = pairs.audited(base, base, probe)
    found = plan.plan(base, base, probe, AuditOptions())
    assert found["passes"] == (3 if held == 1 else 1)
    assert found["bytes"]["base"] == facts["checkpoints"]["base"]["bytes_read"]
    assert found["bytes"]["total"] == sum(side["bytes_read"] for side in facts["checkpoints"].values())


def test_stored_alike_or_not(root):
    base = tiny.save("qwen3_moe", root / "stored", seed=5)
    halved = pairs.variant(base, root / "halved", lambda t: {n: x.to(torch.bfloat16) for n, x in t.items()})
    sides = [open_checkpoint(path) for path in (base, halved)]
    specs = [resolve(side) for side in sides]
    assert plan.stored_differently(sides, specs)
    assert not plan.stored_differently(sides[:1] * 2, specs[:1] * 2)


def test_seconds_by_hand():
    """Everything adds up where no processor is left over; else the longer of reading and multiplying counts."""
    flops = {"projections": 100, "routed experts": 300, "competitors": 100}
    speed = {"flops": 100.0, "expert_flops": 80.0, "readings": 10.0, "logits": 15.0, "bytes": 1.0}
    alone = {"products": 1.0 + 5.0, "readings": 2.0 + 3.0, "reading": 12.0, "total": 23.0}
    assert plan.estimate(flops, 20, 45, 12, 0, speed) == alone
    bound = plan.estimate(flops, 20, 45, 12, 10, speed)
    assert bound == alone | {"reading": 2 + (10 - 5), "total": 18.0}
    hidden = plan.estimate(flops, 20, 45, 12, 10, speed | {"bytes": 4.0})
    assert hidden["reading"] == 2 / 4


def test_a_processor_is_spare_where_products_take_fewer_than_there_are(monkeypatch):
    monkeypatch.setattr(plan.os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    for threads, spare in ((3, True), (4, False)):
        monkeypatch.setattr(plan.torch, "get_num_threads", lambda threads=threads: threads)
        assert plan.spare_processors() is spare


@pytest.fixture(scope="module")
def world(root):
    world = root / "world"
    tiny.save("qwen3_moe", world / "base", seed=5)
    tiny.save("qwen3_moe", world / "other", num_experts=6)
    pairs.probe(world / "probe")
    pairs.probe(world / "open").with_suffix(".lock.json").unlink()
    return world


class TestCommand:
    """`atlas plan`."""

    def call(self, world, tuned="base", probe="probe", *extra):
        arguments = [world / "base", world / tuned, "--probe", world / probe / "probes.yaml", *extra]
        return atlas(["plan", *map(str, arguments)])

    def test_prints_a_table_or_json_and_writes_nothing(self, world, capsys):
        before = sorted(world.rglob("*"))
        assert self.call(world) == 0
        assert "TFLOP in float32" in capsys.readouterr().out
        assert self.call(world, "base", "probe", "--json", "--dtype", "bfloat16") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["dtype"] == "bfloat16"
        assert found["tokens"] == {"all": 1280, "measured": 1280, "scored": 1200}
        assert found["seconds"]["total"] > 0
        assert sorted(world.rglob("*")) == before

    def test_refuses_what_the_audit_refuses(self, world, capsys):
        assert self.call(world, "other") == 4
        assert "E_PAIR" in capsys.readouterr().err
        assert self.call(world, "base", "open") == 2
        assert "atlas register" in capsys.readouterr().err
        assert self.call(world, "base", "probe", "--memory", "1MiB") == 6
        assert "E_MEMORY" in capsys.readouterr().err


def test_a_rate_is_the_typical_one_not_that_of_a_burst(monkeypatch):
    times = iter([0.0, 0.0, 0.01, 0.01, 0.11, 0.11, 0.51])  # start; 10 ms, 100 ms, 400 ms
    monkeypatch.setattr(throughput, "SECONDS", 0.4)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    assert throughput.median_seconds(lambda: None) == pytest.approx(0.1)
