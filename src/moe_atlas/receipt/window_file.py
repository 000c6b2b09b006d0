"""The window data beside a receipt: named float64 and int32 arrays in the safetensors format, no pickle.

Our own writer and reader: the file is canonical (sorted names, no gaps, a fixed header), so equal arrays give
equal bytes, and the reader refuses whatever the writer would not have written.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.checkpoint.headers.strict_json import parse_json_object
from moe_atlas.errors import InputRefused, IntegrityError
from moe_atlas.receipt.files import read_bounded
from moe_atlas.system.limits import MAX_WINDOW_BYTES
from moe_atlas.text import shown

Arrays = dict[str, NDArray[Any]]

MAX_HEADER_BYTES = 16 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"F64": np.dtype("<f8"), "I32": np.dtype("<i4")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*\Z")
_ALIGNMENT = 8


def recorded_windows(path: Path, receipt: Mapping[str, Any]) -> Arrays:
    """Return the arrays that a verified receipt was derived from, under the name and with the digest it records.

    Args:
        path: the receipt, which may have been renamed since.
        receipt: its content.

    Raises:
        AtlasError: ``E_WINDOWS`` (IntegrityError) when the file is not the recorded one; whatever keeps it from being
            read.
    """
    beside = path.parent / receipt["evidence"]["windows"]
    raw = read_bounded(beside, MAX_WINDOW_BYTES)
    if hashlib.sha256(raw).hexdigest() != receipt["evidence"]["sha256"]:
        raise IntegrityError("E_WINDOWS", shown(str(beside)), "is not the window data that the receipt names")
    return decode_windows(raw, beside.name)


def encode_windows(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the bytes of the window file.

    Args:
        arrays: by name, in lower case and dots; float64 or int32, one or two dimensions.

    Raises:
        ValueError: for another dtype, rank or spelling; an internal mistake, not a user's.
    """
    entries: dict[str, Any] = {}
    parts: list[bytes] = []
    offset = 0
    # Eight-byte items first: every array then starts on its own alignment without gaps.
    for name in sorted(arrays, key=lambda name: (arrays[name].dtype.itemsize != 8, name)):
        array = arrays[name]
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES or array.ndim not in (1, 2) or not _NAME.match(name):
            raise ValueError(f"cannot store {name!r}: {array.dtype} {array.shape}")
        data = np.ascontiguousarray(array, dtype=dtype).tobytes()
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
        parts.append(data)
    header = json.dumps(entries, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % _ALIGNMENT)
    return b"".join([struct.pack("<Q", len(header)), header, *parts])


def decode_windows(raw: bytes, label: str) -> Arrays:
    """Return the arrays of a window file, read-only views of ``raw``.

    Raises:
        InputRefused: ``E_WINDOWS`` (or a code of the JSON reader) for anything `encode_windows` does not write.
    """
    if len(raw) < 8:
        raise _refused(label, "shorter than its header length")
    (length,) = struct.unpack("<Q", raw[:8])
    if length > MAX_HEADER_BYTES or 8 + length > len(raw):
        raise _refused(label, "the header is larger than the file or than 16 MiB")
    entries = parse_json_object(raw[8 : 8 + length], label)
    data = memoryview(raw)[8 + length :]
    arrays: Arrays = {}
    end = 0
    for name, entry in entries.items():
        arrays[name], end = _array(name, entry, data, end, label)
    if end != len(data):
        raise _refused(label, f"{len(data) - end} bytes behind the last array")
    if encode_windows(arrays)[: 8 + length] != raw[: 8 + length]:
        raise _refused(label, "the header is not in canonical form")
    return arrays


def _array(name: str, entry: Any, data: memoryview, begin: int, label: str) -> tuple[NDArray[Any], int]:
    if (
        not _NAME.match(name)
        or not isinstance(entry, dict)
        or set(entry) != {"dtype", "shape", "data_offsets"}
    ):
        raise _refused(label, "an entry is not name, dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if (
        entry["dtype"] not in ("F64", "I32")
        or not _sizes(shape)
        or len(shape) not in (1, 2)
        or not _sizes(offsets)
    ):
        raise _refused(label, "a dtype, shape or offset is not one we write")
    dtype = _DTYPES[entry["dtype"]]
    count = 1
    for size in shape:
        count *= size
    end = begin + count * dtype.itemsize
    if list(offsets) != [begin, end] or end > len(data):
        raise _refused(label, "offsets do not cover the data without gaps")
    return np.frombuffer(data[begin:end], dtype=dtype).reshape(shape), end


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 48 for size in value)


def _refused(label: str, problem: str) -> InputRefused:
    return InputRefused("E_WINDOWS", label, problem)
