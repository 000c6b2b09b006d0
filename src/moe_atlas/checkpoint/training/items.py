"""The items of a ``.distcp`` file: each is what torch.save wrote, a zip archive whose entries are not compressed.

So the bytes of a tensor lie in the file as they are. This module finds them and reads nothing but the archive's
directory and its description of the tensor, which is a pickle of three names (`read_pickle` makes plain records of it).
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moe_atlas.checkpoint.headers.header import DTYPE_BITS, pread_all
from moe_atlas.checkpoint.headers.refuse import refusal, shown
from moe_atlas.checkpoint.training.metadata import Place
from moe_atlas.checkpoint.training.pickles import NEXT_STEP, Name, Persistent, Record, read_pickle
from moe_atlas.errors import InputRefused

MAX_DESCRIPTION_BYTES = 64 << 10
MAX_DIRECTORY_BYTES = 64 << 10
_REBUILD, _HOOKS = "torch._utils._rebuild_tensor_v2", "collections.OrderedDict"
_STORAGES = {
    **{"torch.FloatStorage": "F32", "torch.BFloat16Storage": "BF16", "torch.HalfStorage": "F16"},
    **{"torch.DoubleStorage": "F64", "torch.LongStorage": "I64", "torch.IntStorage": "I32"},
    **{"torch.ShortStorage": "I16", "torch.CharStorage": "I8", "torch.ByteStorage": "U8"},
    **{"torch.BoolStorage": "BOOL"},
}
NAMES = frozenset({_REBUILD, _HOOKS, *_STORAGES})
"""Every global that the description of a tensor may name."""
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def find_data(descriptor: int, place: Place, dtype: str, sizes: tuple[int, ...], label: str, key: str) -> int:
    """Return where the bytes of a tensor begin in a file.

    Args:
        descriptor: the open file.
        place: where the item is stored in it.
        dtype: the expected element type.
        sizes: the expected shape.
        label: what messages call the file.
        key: what messages call the tensor.

    Raises:
        InputRefused: ``E_ITEM`` for an item that is no such tensor in row-major order; ``E_PICKLE``.
    """
    return _Item(descriptor, place, label, key).begin(dtype, sizes)


class _Window(io.RawIOBase):
    """The bytes of one item as a file, of which only a directory of bounded size can be read."""

    def __init__(self, descriptor: int, place: Place) -> None:
        self._descriptor, self._place, self._position = descriptor, place, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._place.length}[whence]
        if start + offset < 0:
            raise ValueError("a position before the item")
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._place.length - self._position)
        size = left if size < 0 else min(size, left)
        if size > MAX_DIRECTORY_BYTES:
            raise ValueError("a directory that is too long")
        found = pread_all(self._descriptor, size, self._place.offset + self._position)
        self._position += len(found)
        return found


class _Item:
    def __init__(self, descriptor: int, place: Place, label: str, key: str) -> None:
        self.descriptor, self.place, self.label, self.key = descriptor, place, label, key

    def refuse(self, problem: str) -> InputRefused:
        where = f"the item at byte {self.place.offset} of {self.place.length} bytes"
        return refusal("E_ITEM", self.label, f"{where} {problem}", NEXT_STEP, name=self.key)

    def begin(self, dtype: str, sizes: tuple[int, ...]) -> int:
        with self.broken():
            with zipfile.ZipFile(_Window(self.descriptor, self.place)) as archive:
                listed = archive.infolist()
            entries = {entry.filename: self.span(entry) for entry in listed}
        if len(entries) < len(listed):
            raise self.refuse("holds two entries of one name")
        described = [name for name in entries if name.endswith("/data.pkl")]
        if len(described) != 1:
            raise self.refuse("is not what torch.save writes of a tensor")
        root = described[0].removesuffix("data.pkl")
        if self.small(entries.get(f"{root}byteorder", (0, 0))) not in (b"", b"little"):
            raise self.refuse("holds numbers in another byte order")
        raw = self.small(entries[described[0]])
        value = read_pickle(raw, NAMES, f"{self.label}: '{shown(self.key)}'", persistent=True)
        storage, first = self.tensor(value, dtype, sizes)
        number, held = storage
        begin, nbytes = entries.get(f"{root}data/{number}", (0, -1))
        itemsize = DTYPE_BITS[dtype] // 8
        if nbytes != held * itemsize or (first + math.prod(sizes)) * itemsize > nbytes:
            raise self.refuse(f"does not hold the {math.prod(sizes)} elements of {list(sizes)}")
        return begin + first * itemsize

    @contextmanager
    def broken(self) -> Iterator[None]:
        try:
            yield
        except (
            zipfile.BadZipFile,
            struct.error,
            ValueError,
            NotImplementedError,
            OSError,
            EOFError,
        ) as error:
            raise self.refuse(f"is no zip archive that torch writes: {shown(str(error))}") from None

    def span(self, entry: zipfile.ZipInfo) -> tuple[int, int]:
        """Return begin and length of an entry's bytes in the file."""
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError("an entry that is compressed")
        if entry.flag_bits & 1 or entry.header_offset < 0:
            raise ValueError("an entry that cannot be read in place")
        header = pread_all(self.descriptor, _LOCAL_HEADER.size, self.place.offset + entry.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(header)
        begin = entry.header_offset + _LOCAL_HEADER.size + name + extra
        if signature != b"PK\x03\x04" or begin + entry.file_size > self.place.length:
            raise ValueError("an entry outside of the item")
        return self.place.offset + begin, entry.file_size

    def small(self, span: tuple[int, int]) -> bytes:
        begin, size = span
        if size > MAX_DESCRIPTION_BYTES:
            raise self.refuse(f"describes a tensor in {size} bytes, more than {MAX_DESCRIPTION_BYTES}")
        return pread_all(self.descriptor, size, begin)

    def tensor(self, value: Any, dtype: str, sizes: tuple[int, ...]) -> tuple[tuple[str, int], int]:
        """Return number and elements of the storage of the described tensor, and its first element there."""
        if not isinstance(value, Record) or value.name != _REBUILD or len(value.arguments) != 6:
            raise self.refuse("describes no plain tensor")
        referred, first, shape, strides, _, _ = value.arguments
        storage = referred.identifier if isinstance(referred, Persistent) else None
        if not isinstance(storage, tuple) or len(storage) != 5 or not isinstance(storage[1], Name):
            raise self.refuse("refers to no storage")
        _, kind, number, _, held = storage
        if _STORAGES.get(kind) != dtype or shape != sizes:
            found = f"{_STORAGES.get(kind, kind)} of {_numbers(shape)}"
            raise self.refuse(f"holds {found}, and .metadata says {dtype} of {list(sizes)}")
        if (
            type(number) is not str
            or type(first) is not int
            or type(held) is not int
            or first < 0
            or held < 0
        ):
            raise self.refuse("refers to no part of a storage")
        if not _in_rows(sizes, strides):
            raise self.refuse(f"is not in row-major order: shape {list(sizes)}, strides {_numbers(strides)}")
        return (number, held), first


def _numbers(value: Any) -> str:
    if not isinstance(value, tuple) or not all(type(n) is int for n in value):
        return "no list of numbers"
    return shown(str(list(value[:8])))


def _in_rows(shape: tuple[int, ...], strides: Any) -> bool:
    """Return whether elements with these strides lie in row-major order without gaps."""
    if not isinstance(strides, tuple) or len(strides) != len(shape):
        return False
    step = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True
