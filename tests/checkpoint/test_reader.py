"""The reader: the right tensors from the right bytes, hashed as they are consumed, changes noticed."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from forge import assert_one_line, entry, safetensors_bytes, shard_bytes, write_single
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from moe_atlas.checkpoint import digest_checkpoint, open_checkpoint, shard
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.errors import InputRefused, IntegrityError, ResourceExhausted

SHAPES = [(), (1,), (5,), (3, 4), (2, 3, 5), (0,), (4, 0, 2)]
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.uint64),
]


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """One tensor of each dtype and shape with arbitrary bits, as safetensors writes them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for dtype in DTYPES:
        for shape in SHAPES:
            count = torch.empty(shape).numel()
            high = 2 if dtype is torch.bool else 256
            bits = torch.randint(high, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
            tensors[f"{dtype}.{'x'.join(map(str, shape))}"] = bits.view(dtype).reshape(shape)
    root = tmp_path_factory.mktemp("stored")
    save_file(tensors, root / "model.safetensors")
    (root / "config.json").write_text("{}")
    return root, tensors


def test_reads_every_dtype_and_shape_bit_for_bit(stored: tuple[Path, dict[str, torch.Tensor]]) -> None:
    root, tensors = stored
    reader = Reader(open_checkpoint(root))
    for name, expected in tensors.items():
        found = reader.read(name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert as_bytes(found) == as_bytes(expected)
        assert found.is_contiguous()
        assert found.data_ptr() % 64 == 0
    assert reader.bytes_read == sum(tensor.nbytes for tensor in tensors.values())


def test_reads_one_entry_of_the_leading_dimension(stored: tuple[Path, dict[str, torch.Tensor]]) -> None:
    root, tensors = stored
    reader = Reader(open_checkpoint(root))
    for name, expected in tensors.items():
        for index in range(expected.shape[0] if expected.ndim else 0):
            before = reader.bytes_read
            found = reader.read(name, index)
            assert found.shape == expected.shape[1:]
            assert as_bytes(found) == as_bytes(expected[index])
            assert reader.bytes_read - before == expected[index].nbytes


def test_reads_some_rows(stored: tuple[Path, dict[str, torch.Tensor]]) -> None:
    root, tensors = stored
    reader = Reader(open_checkpoint(root))
    for name, expected in tensors.items():
        if not expected.ndim:
            continue
        for index in (None, *range(expected.shape[0] if expected.ndim > 1 else 0)):
            whole = expected if index is None else expected[index]
            count = whole.shape[0]
            for start, stop in ((0, count), (count // 2, count), (0, count // 2), (1, 1)):
                if start > stop or stop > count:
                    continue
                before = reader.bytes_read
                found = reader.read(name, index, range(start, stop))
                assert (found.dtype, found.shape) == (expected.dtype, whole[start:stop].shape)
                assert as_bytes(found) == as_bytes(whole[start:stop])
                assert reader.bytes_read - before == whole[start:stop].nbytes


def test_what_was_read_is_the_callers_own(stored: tuple[Path, dict[str, torch.Tensor]]) -> None:
    root, tensors = stored
    reader = Reader(open_checkpoint(root))
    reader.read("torch.float32.3x4").fill_(7.0)
    assert as_bytes(reader.read("torch.float32.3x4")) == as_bytes(tensors["torch.float32.3x4"])


def test_a_bool_of_another_byte_is_true(tmp_path: Path) -> None:
    content = safetensors_bytes({"a": entry("BOOL", (3,), (0, 3))}, b"\0\1\2")
    reader = Reader(open_checkpoint(write_single(tmp_path, content)))
    assert reader.read("a").tolist() == [False, True, True]


def test_refuses_a_dtype_that_torch_cannot_hold(tmp_path: Path) -> None:
    content = safetensors_bytes({"scales": entry("F6_E2M3", (4,), (0, 3))}, b"\0" * 3)
    reader = Reader(open_checkpoint(write_single(tmp_path, content)))
    with pytest.raises(InputRefused) as caught:
        reader.read("scales")
    assert_one_line(caught.value, "E_DTYPE", 4, "'scales'", "F6_E2M3")


def test_a_tensor_larger_than_memory_ends_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(open_checkpoint(write_single(tmp_path, shard_bytes({"a": b"12345"}))))

    def exhausted(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 69 bytes")

    monkeypatch.setattr(torch, "empty", exhausted)
    with pytest.raises(ResourceExhausted) as caught:
        reader.read("a")
    assert_one_line(caught.value, "E_MEMORY", 6, "5 bytes")


DATA = {"a": os.urandom(300), "b": os.urandom(64), "c": b""}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 300), st.integers(0, 300)), max_size=12))
def test_the_digest_is_the_same_whatever_was_read_in_which_order(
    tmp_path_factory: pytest.TempPathFactory, reads: list[tuple[str, int, int]]
) -> None:
    root = write_single(tmp_path_factory.mktemp("order"), shard_bytes(DATA))
    checkpoint = open_checkpoint(root)
    reader = Reader(checkpoint)
    for name, one, other in reads:
        start, stop = sorted(min(bound, len(DATA[name])) for bound in (one, other))
        assert bytes(reader.read_bytes(checkpoint.tensors[name], start, stop)) == DATA[name][start:stop]
    found = reader.finish()
    assert found.tensors == {name: hashlib.sha256(data).hexdigest() for name, data in DATA.items()}
    assert found == digest_checkpoint(checkpoint)
    assert reader.finish() == found


def test_what_was_read_in_order_is_not_read_again(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_single(tmp_path, shard_bytes(DATA)))
    reader = Reader(checkpoint)
    for start in range(0, 300, 100):
        reader.read_bytes(checkpoint.tensors["a"], start, start + 100)
    assert reader.bytes_read == 300
    reader.finish()
    assert reader.bytes_read == 364


def test_the_digest_is_of_the_bytes_consumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change behind the reader's back still shows in the digest, even on a file system that does not tell of it."""
    monkeypatch.setattr(shard, "require_same", lambda *_: None)
    root = write_single(tmp_path, shard_bytes(DATA))
    checkpoint = open_checkpoint(root)
    path, tensor = root / "model.safetensors", checkpoint.tensors["a"]
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(tensor.begin)
        file.write(bytes([DATA["a"][0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    reader = Reader(checkpoint)
    changed = bytes(reader.read_bytes(tensor))
    assert changed != DATA["a"]
    with path.open("r+b") as file:
        file.seek(tensor.begin)
        file.write(DATA["a"][:1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reader.finish().tensors["a"] == hashlib.sha256(changed).hexdigest()


def test_two_threads_may_read(tmp_path: Path) -> None:
    rows = torch.arange(64 * 500, dtype=torch.int32).reshape(64, 500)
    save_file({"rows": rows, "other": rows + 1}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    reader = Reader(checkpoint)
    jobs = [(name, index) for index in range(64) for name in ("rows", "other")]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: reader.read(*job), jobs))
    for (name, index), row in zip(jobs, found, strict=True):
        assert torch.equal(row, rows[index] + (name == "other"))
    assert reader.finish() == digest_checkpoint(checkpoint)


def test_notices_truncation_between_and_during_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_single(tmp_path, shard_bytes(DATA))
    checkpoint = open_checkpoint(root)
    path, tensor = root / "model.safetensors", checkpoint.tensors["a"]
    preadv = os.preadv

    def cut_first(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(path, tensor.begin + 10)
        return preadv(descriptor, buffers, offset)

    reader = Reader(checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", cut_first)
        with pytest.raises(IntegrityError) as during:
            reader.read("a")
    assert_one_line(during.value, "E_CHANGED", 5, "model.safetensors", "'a'", "shorter")
    for later in (lambda: reader.read("a"), reader.finish, reader.unchanged):
        with pytest.raises(IntegrityError) as after:
            later()
        assert_one_line(after.value, "E_CHANGED", 5, "model.safetensors", "bytes became")


def test_an_input_error_of_the_disk_ends_in_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(open_checkpoint(write_single(tmp_path, shard_bytes(DATA))))

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(IntegrityError) as caught:
        reader.read("a")
    assert_one_line(caught.value, "E_CHANGED", 5, "model.safetensors", "Input/output error")


def test_leaves_no_file_open(tmp_path: Path) -> None:
    reader = Reader(open_checkpoint(write_single(tmp_path, shard_bytes(DATA))))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        reader.read("a")
    reader.finish()
    os.utime(tmp_path / "model.safetensors", (0, 0))
    for _ in range(20):
        with pytest.raises(IntegrityError):
            reader.read("a")
    assert len(os.listdir("/proc/self/fd")) == before
