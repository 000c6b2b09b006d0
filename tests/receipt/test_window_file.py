"""The window file: readable by the safetensors library, and refused unless it is what we write."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from moe_atlas.errors import AtlasError, InputRefused
from moe_atlas.receipt.window_file import decode_windows, encode_windows

ARRAYS = {
    "windows.domain": np.arange(5, dtype=np.int32),
    "layers.3.pair.content_drift": np.array([0.1, np.nan, np.inf, -0.0, 5e-324]),
    "layers.3.base.counts": np.arange(10, dtype=np.int32).reshape(5, 2),
    "empty": np.zeros(0),
}


def test_safetensors_reads_the_same_arrays() -> None:
    theirs = load(encode_windows(ARRAYS))
    assert set(theirs) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert theirs[name].dtype == array.dtype
        assert theirs[name].tobytes() == array.tobytes()


def test_round_trip_keeps_every_bit() -> None:
    ours = decode_windows(encode_windows(ARRAYS), "w")
    for name, array in ARRAYS.items():
        assert ours[name].shape == array.shape
        assert ours[name].tobytes() == array.tobytes()


def test_equal_arrays_give_equal_bytes() -> None:
    backwards = dict(reversed(ARRAYS.items()))
    assert encode_windows(backwards) == encode_windows(ARRAYS)
    big_endian = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in ARRAYS.items()}
    assert encode_windows(big_endian) == encode_windows(ARRAYS)


@pytest.mark.parametrize(
    "array", [np.zeros(2, dtype=np.float32), np.zeros((1, 1, 1)), np.zeros((), dtype=np.int32)]
)
def test_other_dtypes_and_ranks_are_not_written(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot store"):
        encode_windows({"x": array})


def test_what_safetensors_writes_is_not_canonical() -> None:
    raw = save({"b": np.zeros(3, dtype=np.int32), "a": np.zeros(3)}, metadata={"note": "x"})
    with pytest.raises(InputRefused, match="E_WINDOWS"):
        decode_windows(raw, "w")


def forged(header: object, data: bytes = b"\0" * 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]} | changes


def test_the_forge_can_also_be_right() -> None:
    assert decode_windows(forged({"a": entry()}), "w")["a"].tolist() == [0.0, 0.0]


FORGERIES = [
    b"",
    b"\0" * 7,
    struct.pack("<Q", 1 << 63),
    struct.pack("<Q", (16 << 20) + 1) + b" " * 100,
    forged(b"[]"),
    forged(b'{"a":1,"a":2}'),
    forged(b"\xff"),
    forged({"a": entry(dtype="F32")}),
    forged({"a": entry(dtype="BF16")}),
    forged({"a": entry(shape=[3])}),
    forged({"a": entry(shape=[-2])}),
    forged({"a": entry(shape=[True, 2])}),
    forged({"a": entry(shape=[2.0])}),
    forged({"a": entry(shape=[])}, b"\0" * 8),
    forged({"a": entry(shape=[1 << 60])}),
    forged({"a": entry(data_offsets=[0, 8])}),
    forged({"a": entry(data_offsets=[8, 24])}),
    forged({"a": entry(extra=1)}),
    forged({"a": entry()}, b"\0" * 24),
    forged({"a": entry()}, b"\0" * 8),
    forged({"../a": entry()}),
    forged({"A": entry()}),
    forged({"a": entry(), "__metadata__": {"x": "y"}}),
    forged({"b": entry(), "a": entry(data_offsets=[16, 32])}, b"\0" * 32),
    forged(b'{"a": {"dtype":"F64","shape":[2],"data_offsets":[0,16]}}'),
]


@pytest.mark.parametrize("raw", FORGERIES)
def test_forgeries_are_refused(raw: bytes) -> None:
    with pytest.raises(InputRefused):
        decode_windows(raw, "w")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_crash(raw: bytes) -> None:
    with contextlib.suppress(AtlasError):
        decode_windows(raw, "w")
