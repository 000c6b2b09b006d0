"""Prefetching: background threads, hashing behind the reads, and recycled buffers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch

from moe_atlas.auditing.layer.prefetch import low_priority_pool, reader_thread
from moe_atlas.checkpoint.digest import TensorHash
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import BEHIND, Reader
from scripts.oracle import tiny


@pytest.mark.parametrize("threads", [low_priority_pool, reader_thread])
def test_background_threads_leave_torch_threads_alone(threads):
    before = torch.get_num_threads()
    with threads() as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == before


@pytest.fixture
def reader(tmp_path):
    return Reader(open_checkpoint(tiny.save("qwen3_moe", tmp_path / "base", seed=3)))


def experts(reader):
    return sorted(name for name in reader.checkpoint.tensors if ".experts.0.up_proj" in name)


def test_recycled_memory_is_used_again_and_holds_what_was_read(reader):
    first, second = experts(reader)[:2]
    expected = Reader(reader.checkpoint).read(second)
    tensor = reader.read(first)
    place = tensor.untyped_storage().data_ptr()
    reader.recycle([tensor, tensor[:1]])  # two views of one memory count once
    del tensor
    again = reader.read(second)
    assert again.untyped_storage().data_ptr() == place
    assert torch.equal(again, expected)
    assert reader.read(first).untyped_storage().data_ptr() != place


def test_memory_of_others_is_not_taken(reader):
    foreign = torch.zeros(12345, dtype=torch.uint8)
    reader.recycle([foreign])
    assert not any(reader._spare.values())


def test_what_is_read_is_hashed_behind_it_before_its_memory_is_used_again(reader, monkeypatch):
    names = sorted(name for name in reader.checkpoint.tensors if ".up_proj" in name)[:3]  # of one size
    expected = Reader(reader.checkpoint).finish()
    consume, seen = TensorHash.consume, []

    def slowly(self, data, start):
        time.sleep(0.01)
        seen.append(start)
        consume(self, data, start)

    monkeypatch.setattr(TensorHash, "consume", slowly)
    with reader.hashing_behind(ThreadPoolExecutor(1)):
        for name in names * 4:
            reader.recycle([reader.read(name)])
        assert len(seen) < 4 * len(names)
        assert set(reader.hashed()) == set(names)
        assert len(seen) == 4 * len(names)
    assert reader.finish() == expected


def test_reading_is_a_few_tensors_ahead_of_hashing_and_no_more(reader, monkeypatch):
    name, may_hash = experts(reader)[0], Event()
    monkeypatch.setattr(TensorHash, "consume", lambda self, data, start: may_hash.wait(10))
    done = []
    with reader.hashing_behind(ThreadPoolExecutor(1)), ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: [done.append(reader.read(name)) for _ in range(20)])
        for _ in range(200):
            if len(done) > BEHIND:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(done) == BEHIND + 1
        may_hash.set()
    assert len(done) == 20
