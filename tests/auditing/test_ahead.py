"""Steps whose one part is done in order, while the rest of them is not; memory that is used again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import pytest
import torch

from moe_atlas.auditing.ahead import Turns, ahead, background
from moe_atlas.checkpoint.foresight import Foresight
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from tests import pairs, tiny


def test_turns_come_in_order_though_steps_are_slow():
    turns, order = Turns(), []

    def work(step):
        time.sleep(0.02 if step % 2 == 0 else 0.0)  # the later one is ready first
        turns.wait(step)
        order.append(step)
        turns.over(step)
        return step

    with ThreadPoolExecutor(3) as pool:
        assert list(ahead(pool, work, range(12), depth=3)) == list(range(12))
    assert order == list(range(12))


def test_background_threads_leave_torch_threads_alone():
    before = torch.get_num_threads()
    with background() as pool:
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


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe", "gpt_oss"])
def test_an_audit_reads_what_it_foresees_in_that_order(family, tmp_path, monkeypatch):
    base = tiny.save(family, tmp_path / "base", seed=3)
    tuned = pairs.variant(base, tmp_path / "tuned", lambda tensors: None)
    expected, reads = [], {}

    def expect(reader, order):
        order = list(order)
        expected.append((reader, [name for name, _ in groupby(name for name, _ in order)]))
        plainly(reader, order)

    def reached(ahead, tensor, start):
        reads.setdefault(id(ahead), []).append(tensor.name)

    plainly = Reader.expect
    monkeypatch.setattr(Reader, "expect", expect)
    monkeypatch.setattr(Foresight, "reached", reached)
    pairs.audited(base, tuned, pairs.probe(tmp_path / "probe", documents=2))
    assert len(expected) == 2
    for reader, order in expected:
        found = [name for name, _ in groupby(reads[id(reader._foresight)])]
        assert found == order
        assert len(found) > 10
