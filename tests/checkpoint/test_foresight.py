"""What is asked for ahead: the reads to come, in their order, once, and never further than the distance."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from moe_atlas.checkpoint import digest, foresight
from moe_atlas.checkpoint.foresight import Foresight
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.errors import IntegrityError

SIZE = 1000  # bytes of each tensor


@pytest.fixture
def checkpoint(tmp_path):
    for file in ("a", "b"):
        tensors = {f"{file}{n}": torch.full((10, 25), float(n)) for n in range(4)}
        save_file(tensors, tmp_path / f"{file}.safetensors")
    weight_map = ", ".join(f'"{file}{n}": "{file}.safetensors"' for file in "ab" for n in range(4))
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{weight_map}}}}}')
    (tmp_path / "config.json").write_text("{}")
    return open_checkpoint(tmp_path)


@pytest.fixture
def asked(monkeypatch):
    """Every byte that is asked for, as (file's inode, offset)."""
    found = []

    def advise(descriptor, offset, length, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        assert 0 < length <= digest.ASKED_BYTES
        inode = os.fstat(descriptor).st_ino
        found.extend((inode, byte) for byte in range(offset, offset + length))

    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(foresight, "DISTANCE", 2500)
    monkeypatch.setattr(digest, "ASKED_BYTES", 300)
    return found


def stored(checkpoint, names):
    """The bytes of tensors, in order, as `asked` gives them."""
    found = []
    for name in names:
        tensor = checkpoint.tensors[name]
        inode = checkpoint.files[tensor.file].inode
        found += [(inode, tensor.begin + byte) for byte in range(tensor.nbytes)]
    return found


ORDER = ["b0", "a3", "a0", "b1", "b2"]


def test_what_comes_next_is_asked_for_once_and_in_order(checkpoint, asked):
    reader = Reader(checkpoint)
    reader.expect((name, None) for name in ORDER)
    everything = stored(checkpoint, ORDER)
    assert asked == []
    for number, name in enumerate(ORDER):
        assert torch.equal(reader.read(name), torch.full((10, 25), float(name[1])))
        assert asked == everything[: number * SIZE + 2500], name
    for name in ORDER:  # a second pass
        reader.read(name)
    assert asked == everything


def test_what_is_read_out_of_order_moves_nothing_back(checkpoint, asked):
    reader = Reader(checkpoint)
    reader.expect((name, None) for name in ORDER)
    everything = stored(checkpoint, ORDER)
    reader.read("a0")
    assert asked == everything[2 * SIZE : 2 * SIZE + 2500]
    reader.read("b0")
    reader.read("b3")  # not foreseen
    assert asked == everything[2 * SIZE : 2 * SIZE + 2500]


def test_what_is_read_twice_is_expected_where_it_comes_first(checkpoint, asked):
    reader = Reader(checkpoint)
    reader.expect((name, None) for name in [*ORDER, "b0"])
    reader.read("b0")
    assert asked == stored(checkpoint, ORDER)[:2500]


def test_entries_of_a_tensor_are_asked_for_one_by_one(checkpoint, asked, monkeypatch):
    monkeypatch.setattr(foresight, "DISTANCE", 150)
    reader = Reader(checkpoint)
    reader.expect([("a1", 7), ("b1", 2), ("a1", 8)])
    reader.read("a1", 7)
    a1, b1 = stored(checkpoint, ["a1"]), stored(checkpoint, ["b1"])
    assert asked == [*a1[700:800], *b1[200:250]]
    reader.read("b1", 2)
    assert asked == [*a1[700:800], *b1[200:300], *a1[800:850]]


def test_advice_changes_nothing_where_it_is_refused_or_unknown(checkpoint, monkeypatch):
    def refuse(*arguments):
        raise OSError(95, "not supported")

    for change in (
        lambda: monkeypatch.setattr(os, "posix_fadvise", refuse),
        lambda: monkeypatch.delattr(os, "posix_fadvise"),
    ):
        change()
        reader = Reader(checkpoint)
        reader.expect((name, None) for name in ORDER)
        assert torch.equal(reader.read("a3"), torch.full((10, 25), 3.0))


def test_a_file_that_changed_is_found_when_it_is_read(checkpoint, asked):
    reader = Reader(checkpoint)
    reader.expect([("b0", None), ("a3", None)])
    (checkpoint.root / "a.safetensors").write_bytes(b"other")
    assert torch.equal(reader.read("b0"), torch.zeros(10, 25))
    with pytest.raises(IntegrityError, match=r"a\.safetensors.*changed while it was being read"):
        reader.read("a3")


def test_nothing_is_expected_of_no_reads(checkpoint, asked):
    Foresight(checkpoint, ()).reached(checkpoint.tensors["a0"], 0)
    assert asked == []
