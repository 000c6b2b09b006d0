"""The header of a safetensors file, parsed strictly, by a parser of our own.

The safetensors library keeps the last of two tensors with the same name, and accepts unknown keys and names with
control characters. So a file could show an auditor one tensor and a server another. This parser refuses every such
ambiguity. The library reads every accepted header in the same way.

Layout of a file: 8 bytes little-endian length N, N bytes of JSON, then the data, which the table of the
header must cover from the first byte to the last without a gap or an overlap.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moe_atlas.checkpoint.headers.header_json import ENTRY_KEYS, Entry, Members, decode_header
from moe_atlas.checkpoint.headers.refuse import RE_DOWNLOAD, refusal, shown

MAX_HEADER_BYTES = 16 << 20
MAX_NAME_BYTES = 512
MAX_RANK = 8

DTYPE_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64},
    **{"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Bits of one element, by the spelling that safetensors uses."""
TORCH_NAMES = {
    **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16"},
    **{"U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64"},
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}
"""Torch's name of a dtype, by the spelling that safetensors uses."""

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_TOO_LARGE = 1 << 63  # no framework addresses more elements or bytes
_REPORT_WRITER = "write the file again with a current safetensors"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a safetensors file stores it.

    Attributes:
        name: the name in the header.
        dtype: the element type as safetensors spells it, such as ``BF16``.
        shape: the extent of each dimension; ``()`` for a scalar.
        file: the name of the file inside the checkpoint folder.
        begin: offset of the first data byte from the start of the file.
        nbytes: bytes of data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    nbytes: int


def read_header(
    descriptor: int, size: int, file: str, max_bytes: int = MAX_HEADER_BYTES
) -> list[StoredTensor]:
    """Read and check the header of an open safetensors file.

    The arguments are those of `raw_header`.

    Returns:
        The tensors in the order of their data.

    Raises:
        InputRefused: ``E_HDR_*``, and every code of `parse_header`.
    """
    raw = raw_header(descriptor, size, file, max_bytes)
    return parse_header(raw, file, size - _LENGTH_BYTES - len(raw))


def raw_header(descriptor: int, size: int, file: str, max_bytes: int = MAX_HEADER_BYTES) -> bytes:
    """Read the JSON bytes of the header of an open safetensors file, padding included.

    Args:
        descriptor: a file descriptor open for reading.
        size: the size of the file in bytes.
        file: the file's name inside the checkpoint, for messages and for the result.
        max_bytes: the longest header to accept.

    Raises:
        InputRefused: ``E_HDR_TRUNC`` or ``E_HDR_SIZE``.
    """
    prefix = os.pread(descriptor, _LENGTH_BYTES, 0)
    if len(prefix) < _LENGTH_BYTES:
        raise refusal("E_HDR_TRUNC", file, f"holds {size} bytes, too few for a safetensors file", RE_DOWNLOAD)
    length = int.from_bytes(prefix, "little")
    if length < 2:
        raise refusal(
            "E_HDR_SIZE", file, f"declares a header of {length} bytes, fewer than '{{}}'", RE_DOWNLOAD
        )
    if length > max_bytes:
        problem = f"declares a header of {length} bytes, more than the limit of {max_bytes}"
        raise refusal(
            "E_HDR_SIZE", file, problem, "check that this is a safetensors file, or raise the limit"
        )
    if length > size - _LENGTH_BYTES:
        problem = f"declares a header of {length} bytes but ends after {max(size - _LENGTH_BYTES, 0)}"
        raise refusal("E_HDR_TRUNC", file, problem, RE_DOWNLOAD)
    raw = pread_all(descriptor, length, _LENGTH_BYTES)
    if len(raw) < length:
        raise refusal("E_HDR_TRUNC", file, f"ends inside its header of {length} bytes", RE_DOWNLOAD)
    return raw


def header_metadata(raw: bytes, file: str) -> dict[str, str]:
    """Return the metadata of a header that `parse_header` accepts; empty if it has none."""
    found = next((value for name, value in decode_header(raw, file) if name == _METADATA), ())
    return {key: str(text) for key, text in found}


def pread_all(descriptor: int, length: int, offset: int) -> bytes:
    """Read up to `length` bytes at `offset`; the result is shorter only if the file ends."""
    pieces = []
    while length and (piece := os.pread(descriptor, length, offset)):
        pieces.append(piece)
        length -= len(piece)
        offset += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def parse_header(raw: bytes, file: str, data_bytes: int) -> list[StoredTensor]:
    """Check the JSON part of a header against every rule of the format.

    Args:
        raw: the JSON bytes, padding included.
        file: the file's name, for messages and for the result.
        data_bytes: how many bytes follow the header in the file.

    Returns:
        The tensors in the order of their data.

    Raises:
        InputRefused: ``E_HDR_START``, ``E_HDR_UTF8``, ``E_HDR_JSON``, ``E_DUP_KEY``, ``E_UNKNOWN_KEY``,
            ``E_TYPE``, ``E_NAME``, ``E_DTYPE``, ``E_RANK``, ``E_SHAPE``, ``E_OFFSET`` or ``E_COVER``.
    """
    data_start = _LENGTH_BYTES + len(raw)
    tensors: dict[str, StoredTensor] = {}
    seen_metadata = False
    for name, value in decode_header(raw, file):
        if name == _METADATA:
            if seen_metadata:
                raise refusal("E_DUP_KEY", file, "the key appears twice", _REPORT_WRITER, name=name)
            _check_metadata(value, file)
            seen_metadata = True
            continue
        check_name(name, file)
        if name in tensors:
            problem = "two tensors have this name; readers disagree about which one counts"
            raise refusal("E_DUP_KEY", file, problem, _REPORT_WRITER, name=name)
        tensors[name] = _tensor(name, value, file, data_start)
    return _covering(tensors.values(), file, data_start, data_bytes)


def _check_metadata(value: object, file: str) -> None:
    """Check that the metadata maps distinct strings to strings."""
    if not isinstance(value, Members):
        raise refusal("E_TYPE", file, "must map strings to strings", _REPORT_WRITER, name=_METADATA)
    seen = set()
    for key, text in value:
        if type(text) is not str:
            problem = f"the value of '{shown(key)}' is not a string"
            raise refusal("E_TYPE", file, problem, _REPORT_WRITER, name=_METADATA)
        if not (_is_unicode(key) and _is_unicode(text)):
            raise refusal(
                "E_HDR_JSON", file, "contains half a surrogate pair", _REPORT_WRITER, name=_METADATA
            )
        if key in seen:
            raise refusal(
                "E_DUP_KEY", file, f"the key '{shown(key)}' appears twice", _REPORT_WRITER, name=_METADATA
            )
        seen.add(key)


def _is_unicode(text: str) -> bool:
    """Tell whether the text has an UTF-8 form; JSON can spell half a surrogate pair, which has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_name(name: str, file: str) -> None:
    """Refuse names that are empty, overlong, or look like other names or steer a terminal."""
    if not name:
        raise refusal("E_NAME", file, "a tensor has an empty name", _REPORT_WRITER, name=name)
    if not name.isprintable() and any(unicodedata.category(c) in _UNPRINTABLE for c in name):
        problem = "the tensor's name contains a control or format character"
        raise refusal("E_NAME", file, problem, _REPORT_WRITER, name=name)
    if len(name.encode("utf-8")) > MAX_NAME_BYTES:
        problem = f"the tensor's name is longer than {MAX_NAME_BYTES} bytes"
        raise refusal("E_NAME", file, problem, _REPORT_WRITER, name=name)


def _tensor(name: str, value: object, file: str, data_start: int) -> StoredTensor:
    """Check one tensor's entry by itself: types, dtype, rank, extents, offsets and their agreement."""
    if type(value) is not Entry:
        raise _malformed_entry(name, value, file)
    dtype, shape, offsets = value
    bits = DTYPE_BITS.get(dtype)
    if bits is None:
        problem = f"unknown dtype '{shown(dtype)}'"
        raise refusal("E_DTYPE", file, problem, f"known are {', '.join(DTYPE_BITS)}", name=name)
    nbytes = _shape_bytes(name, shape, bits, file)
    if not (len(offsets) == 2 and type(offsets[0]) is int and type(offsets[1]) is int):
        raise refusal("E_TYPE", file, "data_offsets must be two integers", _REPORT_WRITER, name=name)
    begin, end = offsets
    if not 0 <= begin <= end < _TOO_LARGE:
        raise refusal(
            "E_OFFSET",
            file,
            f"data_offsets {_digits(begin)} to {_digits(end)} are no byte range",
            _REPORT_WRITER,
            name=name,
        )
    if end - begin != nbytes:
        problem = f"shape {list(shape)} of {dtype} needs {nbytes} bytes, data_offsets hold {end - begin}"
        raise refusal("E_SHAPE", file, problem, _REPORT_WRITER, name=name)
    return StoredTensor(name, dtype, shape, file, data_start + begin, nbytes)


def _malformed_entry(name: str, value: object, file: str) -> Exception:
    """Refuse a tensor's entry that does not have exactly the three expected members."""
    if not isinstance(value, Members):
        return refusal("E_TYPE", file, "the tensor's entry is not an object", _REPORT_WRITER, name=name)
    seen = set()
    for key, _ in value:
        if key not in ENTRY_KEYS:
            return refusal("E_UNKNOWN_KEY", file, f"unknown key '{shown(key)}'", _REPORT_WRITER, name=name)
        if key in seen:
            return refusal("E_DUP_KEY", file, f"the key '{key}' appears twice", _REPORT_WRITER, name=name)
        seen.add(key)
    if missing := [key for key in ENTRY_KEYS if key not in seen]:
        return refusal("E_TYPE", file, f"the entry lacks '{missing[0]}'", _REPORT_WRITER, name=name)
    problem = "dtype must be a string, shape and data_offsets lists of integers"
    return refusal("E_TYPE", file, problem, _REPORT_WRITER, name=name)


def _shape_bytes(name: str, shape: tuple[Any, ...], bits: int, file: str) -> int:
    """Return the bytes of a shape; refuse a shape that no framework could hold."""
    if len(shape) > MAX_RANK:
        problem = f"has {len(shape)} dimensions, more than {MAX_RANK}"
        raise refusal("E_RANK", file, problem, name=name)
    elements, nonzero = 1, bits
    for extent in shape:
        if type(extent) is not int:
            raise refusal("E_TYPE", file, "shape must be a list of integers", _REPORT_WRITER, name=name)
        if not 0 <= extent < _TOO_LARGE:
            problem = f"{_digits(extent)} is no extent of a dimension"
            raise refusal("E_SHAPE", file, problem, _REPORT_WRITER, name=name)
        elements *= extent
        nonzero *= extent or 1
    # An empty tensor with huge extents has no bytes, yet its strides overflow in every framework.
    if nonzero >= _TOO_LARGE:
        raise refusal("E_SHAPE", file, f"shape {list(shape)} is too large to address", name=name)
    if elements * bits % 8:
        raise refusal("E_SHAPE", file, f"shape {list(shape)} does not fill whole bytes", name=name)
    return elements * bits // 8


def _digits(number: int) -> str:
    """Return an integer of a header, which may have thousands of digits, in a few characters."""
    return str(number) if abs(number) < 1 << 64 else f"{number.bit_length()}-bit number"


def _covering(
    tensors: Iterable[StoredTensor], file: str, data_start: int, data_bytes: int
) -> list[StoredTensor]:
    """Sort tensors by their data; refuse gaps, overlaps, and data that ends before or after the table."""
    ordered = sorted(tensors, key=lambda tensor: (tensor.begin, tensor.nbytes))
    position = data_start
    for tensor in ordered:
        if tensor.begin != position:
            found = "overlaps the tensor before it" if tensor.begin < position else "leaves a gap before it"
            problem = f"the data begins at byte {tensor.begin - data_start}, which {found}"
            raise refusal("E_COVER", file, problem, _REPORT_WRITER, name=tensor.name)
        position += tensor.nbytes
    covered = position - data_start
    if covered > data_bytes:
        problem = f"holds {data_bytes} bytes of data where its header declares {covered}: it is cut short"
        raise refusal("E_COVER", file, problem, RE_DOWNLOAD)
    if covered < data_bytes:
        raise refusal("E_COVER", file, f"{data_bytes - covered} bytes after the last tensor belong to none")
    return ordered
