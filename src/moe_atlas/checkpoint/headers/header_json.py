"""The JSON of a safetensors header, decoded compactly, with bounded memory and every duplicate kept.

Python's decoder scans the text. Its hooks turn each object into a small value at once. So a header of 16 MiB needs far
less than the gigabyte that plain dictionaries would take.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from moe_atlas.checkpoint.headers.refuse import RE_DOWNLOAD, refusal, shown

ENTRY_KEYS = ("dtype", "shape", "data_offsets")

_BRACKETS_ALWAYS_ALLOWED = 1_000_000
_HEADER_BYTES_PER_BRACKET = 16  # the shortest possible entry has three brackets in 49 bytes


class Entry(NamedTuple):
    """The three values of a tensor's object, not yet checked."""

    dtype: str
    shape: tuple[Any, ...]
    offsets: tuple[Any, ...]


class Members(list[tuple[str, Any]]):
    """The members of any other JSON object, in order and with duplicates."""


class _NotAnInteger:
    """Stands for a JSON number that is not a plain integer: a fraction, an exponent, or -0."""


_NOT_AN_INTEGER = _NotAnInteger()
_NO_MEMBERS = Members()


def decode_header(raw: bytes, file: str) -> Members:
    """Decode the JSON of a header into the members of its top-level object.

    Args:
        raw: the JSON bytes, padding included.
        file: the file's name, for messages.

    Returns:
        Name and value of each member, in order and with duplicates; a well-formed tensor's value is an
        `Entry`, any other object `Members`.

    Raises:
        InputRefused: ``E_HDR_START``, ``E_HDR_UTF8``, ``E_HDR_JSON`` or ``E_TYPE``.
    """
    if not raw.startswith(b"{"):
        problem = f"the header starts with {raw[:4]!r} where '{{' must stand"
        raise refusal("E_HDR_START", file, problem, "check that this is a safetensors file")
    _check_brackets(raw, file)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refusal(
            "E_HDR_UTF8", file, f"byte {error.start} of the header is not UTF-8", RE_DOWNLOAD
        ) from None
    try:
        top = (_DECODER_MINUS_ZERO if b"-0" in raw else _DECODER).decode(text)
    except RecursionError:
        raise refusal("E_HDR_JSON", file, "the header's JSON is nested too deeply", RE_DOWNLOAD) from None
    except ValueError as error:
        raise refusal(
            "E_HDR_JSON", file, f"the header is not JSON: {shown(str(error))}", RE_DOWNLOAD
        ) from None
    if not isinstance(top, Members):
        raise refusal("E_TYPE", file, "the header maps 'dtype', 'shape' and 'data_offsets' to no tensors")
    return top


def _check_brackets(raw: bytes, file: str) -> None:
    """Refuse a header with too many brackets: each takes a hundred bytes of memory when decoded."""
    brackets = raw.count(b"[") + raw.count(b"{")
    if brackets > max(_BRACKETS_ALWAYS_ALLOWED, len(raw) // _HEADER_BYTES_PER_BRACKET):
        raise refusal(
            "E_HDR_JSON", file, f"the header opens {brackets} brackets, more than a table of tensors can"
        )


def _integer(text: str) -> int | _NotAnInteger:
    return _NOT_AN_INTEGER if text == "-0" else int(text)


def _fraction(text: str) -> _NotAnInteger:
    return _NOT_AN_INTEGER


def _constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON value")


def _object(pairs: list[tuple[str, Any]]) -> Entry | Members:
    """Turn an object into a small value at once; a large header has hundreds of thousands of objects."""
    if len(pairs) == 3:
        fields = dict(pairs)
        dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
        if type(dtype) is str and type(shape) is list and type(offsets) is list:
            return Entry(dtype, tuple(shape), tuple(offsets))
    return Members(pairs) if pairs else _NO_MEMBERS


_HOOKS: dict[str, Any] = {
    "object_pairs_hook": _object,
    "parse_float": _fraction,
    "parse_constant": _constant,
}
_DECODER = json.JSONDecoder(**_HOOKS)
# Python reads -0 as the integer 0, safetensors refuses it. The hook is slow, so it serves only where needed.
_DECODER_MINUS_ZERO = json.JSONDecoder(**_HOOKS, parse_int=_integer)
