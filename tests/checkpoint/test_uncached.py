"""Reading past the system's cache: the same bytes, wherever they begin, and the cache left as it was."""

from __future__ import annotations

import ctypes
import os

import pytest

from moe_atlas.checkpoint import uncached
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.errors import IntegrityError
from scripts.oracle import tiny

PAGE = 4096
SIZE = 5 * PAGE + 77


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(n * 7 % 251 for n in range(SIZE)))
    return path


@pytest.fixture
def descriptor(file, monkeypatch):
    monkeypatch.setattr(uncached, "LEAST", 1)
    monkeypatch.setattr(uncached, "PIECE", 2 * PAGE)
    monkeypatch.setattr(uncached, "_own", uncached.local())
    descriptor = os.open(file, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def evict(descriptor):
    """Out of the cache, or skip: not every file system forgets, or reads past it."""
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    if uncached._held(descriptor, 0, SIZE) or not uncached.read(descriptor, memoryview(bytearray(PAGE)), 0):
        pytest.skip("this system reads nothing past its cache")
    assert held(descriptor) == 0


def held(descriptor):
    """Pages in the cache."""
    extent, found = (ctypes.c_uint64 * 2)(0, SIZE), (ctypes.c_uint64 * 5)()
    assert ctypes.CDLL(None).syscall(uncached.CACHESTAT, descriptor, extent, found, 0) == 0
    return found[0]


@pytest.mark.parametrize("offset", [0, 1, PAGE - 1, PAGE, 2 * PAGE + 5, SIZE - 1])
@pytest.mark.parametrize("length", [1, 77, PAGE, 3 * PAGE + 1, SIZE])
def test_the_bytes_are_the_file_s_wherever_they_begin(file, descriptor, offset, length):
    evict(descriptor)
    length = min(length, SIZE - offset)
    buffer = bytearray(length + 2)
    assert uncached.read(descriptor, memoryview(buffer)[1:-1], offset) == length
    assert bytes(buffer) == b"\0" + file.read_bytes()[offset : offset + length] + b"\0"


def test_the_cache_is_left_as_it_was(descriptor):
    evict(descriptor)
    assert uncached.read(descriptor, memoryview(bytearray(SIZE)), 0) == SIZE
    assert held(descriptor) == 0
    os.pread(descriptor, SIZE, 0)
    assert held(descriptor) > 3
    assert uncached.read(descriptor, memoryview(bytearray(SIZE)), 0) == 0  # the cache is faster


def test_the_end_of_the_file_is_no_error(descriptor):
    evict(descriptor)
    assert uncached.read(descriptor, memoryview(bytearray(2 * SIZE)), PAGE + 1) == SIZE - PAGE - 1
    assert uncached.read(descriptor, memoryview(bytearray(10)), SIZE + 9 * PAGE) == 0


def refuse(*arguments):
    raise OSError(22, "Invalid argument")


@pytest.mark.parametrize(
    "closed",
    [
        lambda m: m.setattr(uncached, "POSSIBLE", False),
        lambda m: m.setattr(uncached, "LEAST", SIZE + 1),
        lambda m: m.setattr(uncached, "CACHESTAT", 100_000),  # a system without it
        lambda m: m.setattr(os, "preadv", refuse),
    ],
)
def test_where_this_way_is_closed_nothing_is_read(descriptor, monkeypatch, closed):
    evict(descriptor)
    closed(monkeypatch)
    assert uncached.read(descriptor, memoryview(bytearray(SIZE)), 0) == 0


def test_a_descriptor_is_as_before(descriptor):
    before = uncached.fcntl.fcntl(descriptor, uncached.fcntl.F_GETFL)
    uncached.read(descriptor, memoryview(bytearray(SIZE)), 0)
    assert uncached.fcntl.fcntl(descriptor, uncached.fcntl.F_GETFL) == before


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(uncached, "LEAST", 1)
    return open_checkpoint(tiny.save("qwen3_moe", tmp_path / "base", seed=3))


def test_what_will_be_read_again_or_by_others_goes_into_the_cache(checkpoint, monkeypatch):
    reads = []
    monkeypatch.setattr(uncached, "read", lambda descriptor, buffer, offset: reads.append(len(buffer)) or 0)
    reader, name = Reader(checkpoint), next(iter(checkpoint.tensors))
    reader.read(name)
    assert len(reads) == 1
    reader.again = True
    reader.read(name)
    assert len(reads) == 1
    reader.again, reader.shared = False, frozenset({checkpoint.tensors[name].file})
    reader.read(name)
    assert len(reads) == 1


def test_a_file_that_became_shorter_is_a_changed_one(checkpoint):
    tensor = max(checkpoint.tensors.values(), key=lambda tensor: tensor.begin)
    with checkpoint.open(tensor.file) as shard:
        os.truncate(checkpoint.root / tensor.file, tensor.begin + 1)
        with pytest.raises(IntegrityError) as caught:
            shard.read_into(memoryview(bytearray(tensor.nbytes)), tensor, 0)
    assert caught.value.code == "E_CHANGED"
