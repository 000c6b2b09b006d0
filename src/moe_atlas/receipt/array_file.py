"""Named arrays in the safetensors format, no pickle: the form of the files beside a receipt.

Our own writer and reader: a file is canonical (sorted names, no gaps, a fixed header), so equal arrays give equal
bytes, and the reader refuses whatever the writer would not have written.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.checkpoint.headers.strict_json import parse_json_object
from moe_atlas.errors import NEXT_STEPS, InputRefused

Arrays = dict[str, NDArray[Any]]

MAX_HEADER_BYTES = 16 << 20
_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*\Z")
_ALIGNMENT = 8


@dataclass(frozen=True)
class ArrayFile:
    """One kind of array file.

    Attributes:
        code: error code of a file that this form does not allow.
        dtypes: the dtypes that it may hold, little-endian, by their names in safetensors.
    """

    code: str
    dtypes: Mapping[str, np.dtype[Any]]

    def encode(self, arrays: Mapping[str, NDArray[Any]]) -> bytes:
        """Return the bytes of a file.

        Args:
            arrays: by name, in lower case and dots; one or two dimensions.

        Raises:
            ValueError: for another dtype, rank or spelling; an internal mistake, not a user's.
        """
        return b"".join([self._front(arrays), *(_little(arrays[name]).tobytes() for name in _order(arrays))])

    def _front(self, arrays: Mapping[str, NDArray[Any]]) -> bytes:
        """Return everything in front of the data."""
        names = {dtype: name for name, dtype in self.dtypes.items()}
        entries: dict[str, Any] = {}
        offset = 0
        for name in _order(arrays):
            array = arrays[name]
            dtype = array.dtype.newbyteorder("<")
            if dtype not in names or array.ndim not in (1, 2) or not _NAME.match(name):
                raise ValueError(f"cannot store {name!r}: {array.dtype} {array.shape}")
            offsets = [offset, offset + array.nbytes]
            entries[name] = {"dtype": names[dtype], "shape": list(array.shape), "data_offsets": offsets}
            offset = offsets[1]
        header = json.dumps(entries, separators=(",", ":")).encode("ascii")
        header += b" " * (-len(header) % _ALIGNMENT)
        return struct.pack("<Q", len(header)) + header

    def decode(self, raw: bytes, label: str) -> Arrays:
        """Return the arrays of a file, read-only views of ``raw``.

        Raises:
            InputRefused: the code of this kind (or a code of the JSON reader) for anything `encode` does not write.
        """
        if len(raw) < 8:
            raise self.refused(label, "shorter than its header length")
        (length,) = struct.unpack("<Q", raw[:8])
        if length > MAX_HEADER_BYTES or 8 + length > len(raw):
            raise self.refused(label, "the header is larger than the file or than 16 MiB")
        entries = parse_json_object(raw[8 : 8 + length], label)
        data = memoryview(raw)[8 + length :]
        arrays: Arrays = {}
        end = 0
        for name, entry in entries.items():
            arrays[name], end = self._array(name, entry, data, end, label)
        if end != len(data):
            raise self.refused(label, f"{len(data) - end} bytes behind the last array")
        if self._front(arrays) != raw[: 8 + length]:
            raise self.refused(label, "the header is not in canonical form")
        return arrays

    def _array(
        self, name: str, entry: Any, data: memoryview, begin: int, label: str
    ) -> tuple[NDArray[Any], int]:
        keys = {"dtype", "shape", "data_offsets"}
        if not _NAME.match(name) or not isinstance(entry, dict) or set(entry) != keys:
            raise self.refused(label, "an entry is not name, dtype, shape and data_offsets")
        stored, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        known = isinstance(stored, str) and stored in self.dtypes
        if not known or not _sizes(shape) or len(shape) not in (1, 2) or not _sizes(offsets):
            raise self.refused(label, "a dtype, shape or offset is not one we write")
        dtype = self.dtypes[stored]
        end = begin + math.prod(shape) * dtype.itemsize
        if list(offsets) != [begin, end] or end > len(data):
            raise self.refused(label, "offsets do not cover the data without gaps")
        return np.frombuffer(data[begin:end], dtype=dtype).reshape(shape), end

    def refused(self, label: str, problem: str) -> InputRefused:
        """Return the refusal of a file."""
        return InputRefused(self.code, label, problem, NEXT_STEPS[self.code])


def _order(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return the names, widest items first: every array then starts on its own alignment without gaps."""
    return sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))


def _little(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 48 for size in value)
