"""What the engine leaves out, reads ahead or holds together moves no bit; what it may hold is bounded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from moe_atlas.auditing import loop, run
from moe_atlas.auditing.layer.batches import layer_passes, partition
from moe_atlas.auditing.layer.expert_stream import LayerExperts
from moe_atlas.auditing.layer.prefetch import prefetch
from moe_atlas.checkpoint.reader import Reader
from scripts.oracle import tiny
from tests.support import pairs

CASES = ("deepseek_v3", "olmoe", "llama4_text", "gpt_oss")
TUNES = {
    "nothing": lambda name: False,
    "everything": lambda name: True,
    "attention": lambda name: "self_attn" in name,
    "router": lambda name: "router" in name or name.endswith("gate.weight"),
    "last layer": lambda name: ".layers.1." in name or ".layers.2." in name,
    "one expert": lambda name: ".layers.1." in name and (".experts.3." in name or "experts.gate_up" in name),
    "head": lambda name: "lm_head" in name,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def probes(root):
    evaluation = {"experts": "active", "token_stride": 2, "quantile": 0.9}
    return pairs.probe(root / "probe", documents=6, evaluation=evaluation)


@pytest.fixture(scope="module", params=CASES)
def base(request, root):
    return tiny.save(request.param, root / request.param, seed=3)


def assert_same(first, second):
    facts, arrays = first
    other_facts, other_arrays = second
    assert arrays.keys() == other_arrays.keys()
    for name, values in arrays.items():
        assert np.array_equal(values, other_arrays[name], equal_nan=True), name
    for key in ("layers", "weights", "identity", "controls"):
        assert facts[key] == other_facts[key]
    digests = [[side["digest"] for side in f["checkpoints"].values()] for f in (facts, other_facts)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tune", TUNES)
def test_what_equal_bytes_make_unnecessary_moves_no_bit(base, probes, root, tune, dtype):
    tuned = root / f"{base.name}-{tune.replace(' ', '-')}"
    if not tuned.exists():
        pairs.variant(base, tuned, pairs.jitter(0.2, TUNES[tune]))
    plain = pairs.audited(base, tuned, probes, dtype=dtype, skips=False)
    assert_same(plain, pairs.audited(base, tuned, probes, dtype=dtype))


def counted(monkeypatch):
    """How many rows experts are evaluated on, and how many tokens attention sees."""
    counts = {"rows": 0, "attended": 0}
    evaluate, attention = run.Replay.expert, run.Replay.attention

    def counting_expert(self, layer, w, g_TD, tokens_P, weights_P):
        counts["rows"] += len(tokens_P)
        return evaluate(self, layer, w, g_TD, tokens_P, weights_P)

    def counting_attention(self, layer, w, state):
        counts["attended"] += state.shape[0] * state.shape[1]
        return attention(self, layer, w, state)

    monkeypatch.setattr(run.Replay, "expert", counting_expert)
    monkeypatch.setattr(run.Replay, "attention", counting_attention)
    return counts


def test_an_audit_against_itself_evaluates_what_a_baseline_does(base, probes, monkeypatch):
    counts = counted(monkeypatch)
    pairs.audited(base, None, probes)
    alone = dict(counts)
    pairs.audited(base, base, probes)
    assert {key: counts[key] - alone[key] for key in counts} == alone


def test_frozen_experts_are_not_evaluated_at_the_anchor(base, probes, root, monkeypatch):
    moved = pairs.variant(base, root / f"{base.name}-q", pairs.jitter(0.2, lambda name: "q_" in name))
    counts = counted(monkeypatch)
    pairs.audited(base, None, probes)
    pairs.audited(moved, None, probes)
    alone = counts["rows"]
    pairs.audited(base, moved, probes)
    published = counts["rows"] - 2 * alone  # Eq. 28 as printed reads a few more rows at native states
    assert 0 <= published < 0.2 * alone


def audited_in_rounds(base, tuned, probes, monkeypatch, held_tokens, threads, depth):
    """An audit in batches of 64 tokens, so many held together, so many threads reading ahead; (result, rounds)."""
    parts = []

    class Walk(loop.Walk):
        def __init__(self, **options):
            pool = ThreadPoolExecutor(threads)
            super().__init__(**options | {"held_tokens": held_tokens, "pool": pool, "read_ahead": depth})
            parts.extend(layer_passes(self.batches, held_tokens))

    monkeypatch.setattr(run, "partition", partial(partition, limit=64))
    monkeypatch.setattr(run, "Walk", Walk)
    return pairs.audited(base, tuned, probes), parts


def test_neither_rounds_nor_prefetching_move_a_bit(base, probes, root, monkeypatch):
    tuned = pairs.variant(base, root / f"{base.name}-all", pairs.jitter(0.2, lambda name: True))
    one_by_one, singly = audited_in_rounds(base, tuned, probes, monkeypatch, 1, 1, 0)
    together, all_at_once = audited_in_rounds(base, tuned, probes, monkeypatch, 10**9, 5, 4)
    assert (len(singly), len(all_at_once)) == (3, 1)
    assert_same(one_by_one, together)
    read = [
        sum(side["bytes_read"] for side in facts["checkpoints"].values())
        for facts, _ in (one_by_one, together)
    ]
    assert read[1] < read[0]


def test_all_passes_but_the_last_keep_experts_in_the_cache(base, probes, monkeypatch):
    reads, read_into = {}, Reader._read_into

    def recorded(self, buffer, tensor, start):
        if ".experts." in tensor.name:
            reads.setdefault((id(self), tensor.name, start), []).append(self.again)
        read_into(self, buffer, tensor, start)

    monkeypatch.setattr(Reader, "_read_into", recorded)
    _, parts = audited_in_rounds(base, base, probes, monkeypatch, 1, 1, 1)
    passes = [True] * (len(parts) - 1) + [False]
    assert len(passes) == 3
    assert reads
    assert all(again == passes for again in reads.values())


def test_nothing_ahead_is_only_what_is_asked_for():
    started = []
    with ThreadPoolExecutor(2) as pool:
        results = prefetch(lambda step: pool.submit(lambda: started.append(step) or step), range(3), depth=0)
        for step in range(3):
            assert started == list(range(step))
            assert next(results) == step
        assert next(results, None) is None


@pytest.mark.parametrize("depth", [0, 1])
def test_no_more_experts_are_read_ahead_than_the_walk_allows(base, probes, monkeypatch, depth):
    reads, most = [], 0
    begin, recycle = LayerExperts._start, LayerExperts._recycle

    def beginning(self, expert):
        reads.append(expert)
        return begin(self, expert)

    def recycling(self, one):
        nonlocal most
        most = max(most, len(reads))
        reads.pop(0)
        recycle(self, one)

    monkeypatch.setattr(LayerExperts, "_start", beginning)
    monkeypatch.setattr(LayerExperts, "_recycle", recycling)
    monkeypatch.setattr(run, "Walk", partial(loop.Walk, pool=ThreadPoolExecutor(4)))
    monkeypatch.setattr(run.memory, "read_ahead", lambda limit, room: depth)
    pairs.audited(base, base, probes)
    assert 1 <= most <= depth + 1


def test_work_ahead_is_ordered_bounded_and_stops():
    running, started = threading.Semaphore(0), []

    def work(step):
        started.append(step)
        running.release()
        if step == 6:
            raise ValueError("six")
        return step * step

    with ThreadPoolExecutor(2) as pool:
        results = prefetch(partial(pool.submit, work), range(100), depth=3)
        for _ in range(3):
            running.acquire()
        assert sorted(started) == [0, 1, 2]  # begun before anything was asked for, and no more than that
        assert [next(results) for _ in range(6)] == [0, 1, 4, 9, 16, 25]
        with pytest.raises(ValueError, match="six"):
            next(results)
        assert len(started) <= 10
        assert next(results, None) is None
