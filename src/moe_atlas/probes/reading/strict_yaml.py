"""A YAML reader for files that decide a verdict: it accepts only text that has one meaning.

PyYAML's own loader keeps the last of duplicate keys, reads ``no`` as false and ``1e-3`` as a string, and expands
aliases without a bound. This module uses PyYAML's *parser* only. It folds the parser's events into nodes that know
their line, reads scalars by the core schema of YAML 1.2, and refuses everything that could mean two things.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import yaml

from moe_atlas.errors import InputRefused
from moe_atlas.text import quoted

MAX_BYTES = 256 << 10
MAX_DEPTH = 16

Plain = str | int | float | bool | None

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+\Z")
_INT64 = 1 << 63


@dataclass(frozen=True)
class Scalar:
    """A value and its 1-based line."""

    value: Plain
    line: int


@dataclass(frozen=True)
class Sequence:
    """A list of nodes; `line` is its first line."""

    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True)
class Mapping:
    """Nodes by unique string keys; `key_lines` holds the line of each key."""

    entries: dict[str, Node]
    key_lines: dict[str, int]
    line: int


Node = Scalar | Sequence | Mapping


def parse(text: bytes, name: str) -> Node:
    """Read one YAML document into nodes.

    Args:
        text: the file's bytes, UTF-8, at most `MAX_BYTES`.
        name: the file's name for messages.

    Raises:
        InputRefused: E_PROBE_YAML with ``file:line`` for a syntax error, duplicate key, anchor, alias, tag,
            directive, second document, non-finite or ambiguous number, a key that is no plain text, or
            nesting beyond `MAX_DEPTH`.
    """
    return _Composer(name).compose(text)


class _Composer:
    def __init__(self, name: str) -> None:
        self.name = name
        self.events: Iterator[yaml.Event] = iter(())

    def refuse(self, line: int, problem: str, next_step: str = "") -> NoReturn:
        raise InputRefused("E_PROBE_YAML", f"{self.name}:{line}", problem, next_step)

    def compose(self, text: bytes) -> Node:
        if len(text) > MAX_BYTES:
            self.refuse(1, f"is longer than the limit of {MAX_BYTES} bytes")
        try:
            decoded = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.refuse(text.count(b"\n", 0, error.start) + 1, "is not UTF-8")
        try:
            self.events = yaml.parse(decoded, Loader=yaml.SafeLoader)
            return self._document()
        except yaml.reader.ReaderError as error:
            line = decoded.count("\n", 0, error.position) + 1
            self.refuse(line, f"holds the unprintable character {error.character!r}")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.refuse(mark.line + 1 if mark else 1, f"is not valid YAML ({error.problem})")

    def _document(self) -> Node:
        root: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                line = _line(event)
                if root is not None:
                    self.refuse(line, "a second document begins here; one file holds one document")
                if event.version or event.tags:
                    self.refuse(line, "a %-directive is not accepted")
                root = self._node(next(self.events), 0)
        if root is None:
            self.refuse(1, "is empty")
        return root

    def _node(self, event: yaml.Event, depth: int) -> Node:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            self.refuse(line, f"alias *{event.anchor}: aliases are not accepted", "write the value out")
        if anchor := getattr(event, "anchor", None):
            self.refuse(line, f"anchor &{anchor}: anchors are not accepted")
        if tag := getattr(event, "tag", None):
            self.refuse(line, f"tag {quoted(tag)}: tags are not accepted")
        if depth > MAX_DEPTH:
            self.refuse(line, f"is nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(self._scalar(event, line), line)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(line, depth)
        return self._mapping(line, depth)

    def _sequence(self, line: int, depth: int) -> Sequence:
        items: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return Sequence(tuple(items), line)

    def _mapping(self, line: int, depth: int) -> Mapping:
        entries: dict[str, Node] = {}
        key_lines: dict[str, int] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key_line = _line(event)
            if isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
                self._node(event, depth + 1)  # refuses an anchor, alias or tag on the key itself
            if not isinstance(event, yaml.ScalarEvent):
                self.refuse(key_line, "a key must be plain text")
            key = str(event.value)
            if key in entries:
                self.refuse(key_line, f"duplicate key {quoted(key)}, first on line {key_lines[key]}")
            key_lines[key] = key_line
            entries[key] = self._node(next(self.events), depth + 1)
        return Mapping(entries, key_lines, line)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Plain:
        text = str(event.value)
        if event.style:  # quoted or block: always text
            return text
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if _NON_FINITE.match(text):
            self.refuse(line, f"{text} is not a finite number")
        if _LEADING_ZERO.match(text):
            self.refuse(
                line, f"{text} is octal in YAML 1.1 and decimal in 1.2", "drop the leading zero or quote it"
            )
        if _INT.match(text):
            return self._integer(text, line)
        if _FLOAT.match(text):
            value = float(text)
            if not math.isfinite(value):
                self.refuse(line, f"{quoted(text)} is not a finite number")
            return value
        return text

    def _integer(self, text: str, line: int) -> int:
        value = int(text) if len(text) <= 20 else _INT64
        if not -_INT64 <= value < _INT64:
            self.refuse(line, f"{quoted(text, 40)} does not fit a 64-bit integer")
        return value


def _line(event: yaml.Event) -> int:
    return int(event.start_mark.line) + 1 if event.start_mark else 1
