"""Where documents come from.

A ``.jsonl`` file, a ``.txt`` file, a folder of them, or a ``.safetensors`` table of token ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from moe_atlas.errors import InputRefused
from moe_atlas.probes.files import read_bounded, sha256_hex, shown
from moe_atlas.probes.tokenizer import Tokenizer, Tokens

MAX_SOURCE_BYTES = 2 << 30
MAX_TOKEN = (1 << 31) - 1
"""Token ids are kept as int32 beside a receipt."""

_FORMATS = (".jsonl", ".txt", ".safetensors")
_FORMS = (("text",), ("tokens",), ("prompt", "completion"))


@dataclass(frozen=True)
class Record:
    """One row of a source, before tokenisation.

    Attributes:
        document_id: the document it belongs to; rows with one id are parts of one document.
        where: file and line for messages.
        content: text or token ids; the completion when there is a prompt.
        prompt: text or token ids in front of the completion, None for a plain row.
    """

    document_id: str
    where: str
    content: str | Tokens
    prompt: str | Tokens | None = None

    def encode(self, tokenizer: Tokenizer) -> tuple[Tokens, int]:
        """Token ids, int64 [length], and how many of them are prompt (0 for a plain row).

        Raises:
            InputRefused: E_PROBE_SOURCE for an empty prompt, E_PROBE_TOKENIZER.
        """
        content = _ids(self.content, tokenizer, self.where)
        if self.prompt is None:
            return content, 0
        prompt = _ids(self.prompt, tokenizer, self.where)
        if not len(prompt):
            _refuse(self.where, "the prompt is empty, so the completion's first token follows nothing")
        return np.concatenate([prompt, content]), len(prompt)


@dataclass(frozen=True)
class Source:
    """A source read in full.

    Attributes:
        records: in the order of the file; files of a folder by name.
        sha256: digest of the bytes read; of the sorted lines ``name TAB sha256`` for a folder.
    """

    records: tuple[Record, ...]
    sha256: str


def _ids(content: str | Tokens, tokenizer: Tokenizer, where: str) -> Tokens:
    return tokenizer.encode(content, where) if isinstance(content, str) else content


def _refuse(where: str, problem: str, next_step: str = "") -> NoReturn:
    raise InputRefused("E_PROBE_SOURCE", where, problem, next_step)


def read_source(path: Path) -> Source:
    """Read a source whole.

    Raises:
        InputRefused: E_PROBE_SOURCE; missing, of an unknown format, not a regular file, too long, or a row
            that is malformed, with its line.
    """
    if not path.is_dir():
        raw = read_bounded(path, MAX_SOURCE_BYTES, "E_PROBE_SOURCE")
        return Source(tuple(_records(raw, path.name, "")), sha256_hex(raw))
    records: list[Record] = []
    lines: list[str] = []
    for file in sorted(path.iterdir(), key=lambda entry: entry.name):
        if file.name.startswith("."):
            continue
        if file.suffix not in (".jsonl", ".txt"):
            _refuse(str(file), "a folder of documents holds .jsonl and .txt files only", "move it elsewhere")
        raw = read_bounded(file, MAX_SOURCE_BYTES, "E_PROBE_SOURCE")
        lines.append(f"{file.name}\t{sha256_hex(raw)}\n")
        records.extend(_records(raw, file.name, f"{file.name}:"))
    return Source(tuple(records), sha256_hex("".join(lines).encode("utf-8", "surrogateescape")))


def _records(raw: bytes, name: str, prefix: str) -> Iterator[Record]:
    """The rows of one file; `prefix` keeps the default ids of a folder's files apart."""
    suffix = Path(name).suffix
    if suffix == ".jsonl":
        return _jsonl(raw, name, prefix)
    if suffix == ".txt":
        return iter([Record(name, name, _utf8(raw, name))])
    if suffix == ".safetensors":
        return _safetensors(raw, name)
    _refuse(name, "has no format known by its ending", f"known are {', '.join(_FORMATS)} and a folder")


def _utf8(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(where, f"is not UTF-8 (byte {error.start})")


def _jsonl(raw: bytes, name: str, prefix: str) -> Iterator[Record]:
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            where = f"{name}:{number}"
            yield _row(_object(_utf8(line, where), where), where, f"{prefix}{number}")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        _refuse(where, f"is not JSON ({shown(problem)})")
    if not isinstance(row, dict):
        _refuse(where, f"must be a JSON object, found {type(row).__name__}")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("duplicate key")
    return row


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _row(row: dict[str, Any], where: str, default_id: str) -> Record:
    """One of text, tokens, or prompt with completion; other columns are the owner's business."""
    document_id = _document_id(row.get("id", default_id), where)
    forms = [form for form in _FORMS if any(key in row for key in form)]
    if len(forms) != 1:
        found = " and ".join("+".join(form) for form in forms) or f"only {shown(', '.join(row))}"
        _refuse(where, f"a row has text, or tokens, or prompt and completion; found {found}")
    if missing := [key for key in forms[0] if key not in row]:
        _refuse(where, f"{missing[0]} is missing")
    if forms[0] == ("prompt", "completion"):
        prompt, completion = (_content(row[key], key, where, None) for key in forms[0])
        return Record(document_id, where, completion, prompt)
    key = forms[0][0]
    return Record(document_id, where, _content(row[key], key, where, str if key == "text" else list))


def _document_id(value: object, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or len(value) > 512:
        _refuse(where, "id must be an integer or a text of 1 to 512 characters")
    return _encodable(value, "id", where)


def _content(value: object, key: str, where: str, wanted: type | None) -> str | Tokens:
    if isinstance(value, str) and wanted is not list:
        return _encodable(value, key, where)
    if isinstance(value, list) and wanted is not str:
        return _token_list(value, key, where)
    forms = {"str": "text", "list": "a list of token ids"}
    expected = " or ".join(forms.values()) if wanted is None else forms[wanted.__name__]
    _refuse(where, f"{key} must be {expected}, found {type(value).__name__}")


def _encodable(text: str, key: str, where: str) -> str:
    """JSON can spell half of a surrogate pair, which is no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        _refuse(where, f"{key} holds half of a surrogate pair")
    return text


def _token_list(values: list[Any], key: str, where: str) -> Tokens:
    for value in values:
        if type(value) is not int or not 0 <= value <= MAX_TOKEN:
            _refuse(where, f"{key} must hold integers from 0 to {MAX_TOKEN}, found {shown(str(value), 40)}")
    return np.array(values, dtype=np.int64)


def _safetensors(raw: bytes, name: str) -> Iterator[Record]:
    """The rows of the int64 tensor ``tokens`` [documents, tokens] of a file held in memory."""
    from moe_atlas.checkpoint.header import parse_header  # noqa: PLC0415  only this format needs it

    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or not 2 <= length <= min(len(raw) - 8, 1 << 20):
        _refuse(name, "is no safetensors file, or is cut short")
    header = parse_header(raw[8 : 8 + length], name, len(raw) - 8 - length)
    if [(t.name, t.dtype, len(t.shape)) for t in header] != [("tokens", "I64", 2)]:
        found = ", ".join(f"{shown(t.name, 40)} {t.dtype} {list(t.shape)}" for t in header)
        _refuse(name, f"must hold one tensor tokens, I64 [documents, tokens]; found {found or 'none'}")
    stored = header[0]
    flat = np.frombuffer(raw, dtype="<i8", count=stored.nbytes // 8, offset=stored.begin)
    tokens = flat.reshape(stored.shape).astype(np.int64)
    outside = np.flatnonzero(((tokens < 0) | (tokens > MAX_TOKEN)).any(axis=1))
    if outside.size:
        _refuse(f"{name}: row {outside[0]}", f"token ids must be from 0 to {MAX_TOKEN}")
    for row in range(stored.shape[0]):
        yield Record(str(row), f"{name}: row {row}", tokens[row])
