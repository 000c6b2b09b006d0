"""Read files of rows: JSON lines and arrays, plain or compressed by gzip, Parquet, Arrow, tables of token ids.

The unpacked size has a limit as well as the file's size, because a small file can unpack to a very large text.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from moe_atlas.probes.documents.rows import COLUMNS, MAX_TOKEN, Record, read_row, refuse
from moe_atlas.text import quoted

MAX_SOURCE_BYTES = 2 << 30
EXPANSION = 100
"""Largest ratio of unpacked to compressed size; text compresses three to ten times."""
FREE = 16 << 20
"""Bytes to which any compressed file may unpack, whatever its ratio."""

ROW_FILES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".arrow")
_BOM = b"\xef\xbb\xbf"


def is_row_file(name: str) -> bool:
    """Return whether a file of this name holds rows rather than a text."""
    return name.endswith(ROW_FILES)


def records(raw: bytes, name: str, prefix: str, form: str | None) -> Iterator[Record]:
    """Yield the rows of a file.

    Args:
        raw: the file's bytes.
        name: the file's name, for messages; its ending decides the format.
        prefix: prefix of default ids, so that rows of different files in a folder get different ids.
        form: the form of row to read, of `rows.FORMS`; None if a row holds the columns of one form only.

    Raises:
        InputRefused: E_PROBE_SOURCE.
    """
    inner = name.removesuffix(".gz")
    if inner != name:
        raw = _unpacked(raw, name)
    if inner.endswith(".jsonl"):
        rows = _lines(raw, name)
    elif inner.endswith(".json"):
        rows = _array(raw, name)
    else:
        rows = _arrow(raw, name)
    for row, where, number in rows:
        yield read_row(row, where, f"{prefix}{number}", form)


_Rows = Iterator[tuple[dict[str, Any], str, int]]
"""Columns, place and number of each row."""


def utf8(raw: bytes, where: str) -> str:
    """Decode a file's bytes to text without a byte order mark.

    Raises:
        InputRefused: E_PROBE_SOURCE.
    """
    try:
        return raw.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        step = "it begins as UTF-16 does: save it as UTF-8" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        refuse(where, f"is not UTF-8 (byte {error.start})", step or "save it as UTF-8")


def _unpacked(raw: bytes, name: str) -> bytes:
    most = min(MAX_SOURCE_BYTES, max(FREE, EXPANSION * len(raw)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            text = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        refuse(name, f"is no whole gzip file ({quoted(str(error))})", "compress it again")
    if len(text) > most:
        refuse(name, f"unpacks to more than {most} bytes", "give the unpacked file, if that is meant")
    return text


def _lines(raw: bytes, name: str) -> _Rows:
    for number, line in enumerate(raw.removeprefix(_BOM).split(b"\n"), start=1):
        if line.strip():
            where = f"{name}:{number}"
            row = _json(utf8(line, where), where)
            if isinstance(row, list) and number == 1 and row and isinstance(row[0], dict):
                refuse(where, "must be a JSON object, found an array of them", "name the file .json")
            yield _object(row, where), where, number


def _array(raw: bytes, name: str) -> _Rows:
    rows = _json(utf8(raw, name), name)
    if not isinstance(rows, list):
        step = "one object a line belongs in a file named .jsonl"
        refuse(name, f"must be a JSON array of objects, found {type(rows).__name__}", step)
    for number, row in enumerate(rows, start=1):
        where = f"{name}: row {number}"
        yield _object(row, where), where, number


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        refuse(where, f"is not JSON ({quoted(problem)})")


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        refuse(where, f"must be a JSON object, found {type(row).__name__}")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("duplicate key")
    return row


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _arrow(raw: bytes, name: str) -> _Rows:
    """Yield the rows of a Parquet file or an Arrow stream; a null counts as an absent column."""
    arrow = _pyarrow(name)
    number = 0
    try:
        for batch in _batches(arrow, raw, name):
            for row in batch.to_pylist():
                number += 1
                filled = {key: value for key, value in row.items() if value is not None}
                yield filled, f"{name}: row {number}", number
    except (arrow.ArrowException, OSError, ValueError) as error:
        refuse(
            name, f"cannot be read as {Path(name).suffix[1:]} ({quoted(str(error), 120)})", "write it again"
        )


def _pyarrow(name: str) -> Any:
    try:
        import pyarrow  # noqa: PLC0415  an extra
        import pyarrow.ipc  # noqa: PLC0415
        import pyarrow.parquet  # noqa: F401, PLC0415
    except ImportError:
        refuse(name, "needs pyarrow, which is not installed", "pip install 'moe-atlas[data]'")
    return pyarrow


def _batches(arrow: Any, raw: bytes, name: str) -> Iterable[Any]:
    """Yield batches of the columns that rows use, up to the size limit."""
    buffer = arrow.py_buffer(raw)
    if name.endswith(".parquet"):
        file = arrow.parquet.ParquetFile(arrow.BufferReader(buffer))
        columns = [column for column in file.schema_arrow.names if column in COLUMNS]
        _require_size(_parquet_bytes(file.metadata, columns), name)
        yield from file.iter_batches(batch_size=1024, columns=columns)
        return
    total = 0
    with arrow.ipc.open_stream(buffer) as stream:
        for batch in stream:
            total += batch.nbytes
            _require_size(total, name)
            yield batch.select([column for column in batch.schema.names if column in COLUMNS])


def _parquet_bytes(metadata: Any, columns: list[str]) -> int:
    """Return the unpacked size of the columns in bytes, as the file's metadata state it."""
    total = 0
    for group in range(metadata.num_row_groups):
        chunks = [metadata.row_group(group).column(n) for n in range(metadata.row_group(group).num_columns)]
        total += sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns)
    return total


def _require_size(size: int, name: str) -> None:
    if size > MAX_SOURCE_BYTES:
        refuse(name, f"unpacks to more than the limit of {MAX_SOURCE_BYTES} bytes", "give a part of it")


def token_table(raw: bytes, name: str) -> Iterator[Record]:
    """Yield the rows of the int64 tensor ``tokens`` [documents, tokens] of a safetensors file held in memory.

    Raises:
        InputRefused: E_PROBE_SOURCE, and every refusal of `parse_header`.
    """
    from moe_atlas.checkpoint.headers.header import parse_header  # noqa: PLC0415  only this format needs it

    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or not 2 <= length <= min(len(raw) - 8, 1 << 20):
        refuse(name, "is no safetensors file, or is cut short")
    header = parse_header(raw[8 : 8 + length], name, len(raw) - 8 - length)
    if [(t.name, t.dtype, len(t.shape)) for t in header] != [("tokens", "I64", 2)]:
        found = ", ".join(f"{quoted(t.name, 40)} {t.dtype} {list(t.shape)}" for t in header)
        refuse(name, f"must hold one tensor tokens, I64 [documents, tokens]; found {found or 'none'}")
    stored = header[0]
    flat = np.frombuffer(raw, dtype="<i8", count=stored.nbytes // 8, offset=stored.begin)
    tokens = flat.reshape(stored.shape).astype(np.int64)
    outside = np.flatnonzero(((tokens < 0) | (tokens > MAX_TOKEN)).any(axis=1))
    if outside.size:
        refuse(f"{name}: row {outside[0]}", f"token ids must be from 0 to {MAX_TOKEN}")
    for row in range(stored.shape[0]):
        yield Record(str(row), f"{name}: row {row}", tokens[row])
