"""Typed reading of YAML nodes: every refusal names the file, the line, the key and what was expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NoReturn

from moe_atlas.errors import InputRefused
from moe_atlas.probes.reading.collect import Noted, note, noted
from moe_atlas.probes.reading.strict_yaml import Mapping, Node, Scalar, Sequence
from moe_atlas.text import quoted


@dataclass(frozen=True)
class Span:
    """An interval of numbers; `open_low` and `open_high` leave the end points out."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"


def kind(node: Node | None) -> str:
    """Return what a message calls this node."""
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Sequence):
        return "a list"
    value = None if node is None else node.value
    return "nothing" if value is None else f"{type(value).__name__} {quoted(str(value), 40)}"


class Fields:
    """A mapping of the probe file, read key by key; under `collect.together`, refusals of keys are noted.

    Args:
        node: the node that must be a mapping.
        name: the mapping's dotted name, such as ``policy.rewrite``; empty for the whole file.
        file: the file's name for messages.
        known: every key the mapping may have; any other key is refused with the nearest known key.

    Raises:
        InputRefused: E_PROBE_VALUE for a wrong type or range, E_PROBE_KEY for an unknown or missing key.
    """

    def __init__(self, node: Node, name: str, file: str, known: Seq[str]) -> None:
        self.name, self.file, self.line = name, file, node.line
        if not isinstance(node, Mapping):
            self.refuse(node.line, f"{name or 'the file'} must be a mapping, found {kind(node)}")
        self.node: Mapping = node
        self._meant: set[str] = set()
        for key in node.entries:
            if key not in known:
                self._unknown(key, known)

    def _unknown(self, key: str, known: Seq[str]) -> None:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        place = f" in {self.name}" if self.name else ""
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        self._meant.update(near)
        where = f"{self.file}:{self.node.key_lines[key]}"
        note(InputRefused("E_PROBE_KEY", where, f"unknown key {quoted(key)}{place}", hint))

    def refuse(self, line: int, problem: str, next_step: str = "") -> NoReturn:
        """Raise E_PROBE_VALUE at `line`."""
        raise InputRefused("E_PROBE_VALUE", f"{self.file}:{line}", problem, next_step)

    def path(self, key: str) -> str:
        """Return the key's full dotted name."""
        return f"{self.name}.{key}" if self.name else key

    def has(self, key: str) -> bool:
        """Return whether the key is written, even as null."""
        return key in self.node.entries

    def is_null(self, key: str) -> bool:
        """Return whether the key is absent or written as null."""
        node = self.node.entries.get(key)
        return node is None or (isinstance(node, Scalar) and node.value is None)

    def line_of(self, key: str) -> int:
        """Return the line of the key, or of the mapping if the key is absent."""
        return self.node.key_lines.get(key, self.line)

    def get(self, key: str) -> Node:
        """Return the node of a required key.

        Raises:
            InputRefused: E_PROBE_KEY if the key is missing.
        """
        self.require(key, f"add the key {key}")
        return self.node.entries[key]

    def require(self, key: str, next_step: str) -> None:
        """Refuse a file that lacks a key.

        Raises:
            InputRefused: E_PROBE_KEY with `next_step` if the key is missing.
        """
        if not self.has(key) and key in self._meant:
            raise Noted  # the key is there, misspelt, and noted
        if not self.has(key):
            where = f"{self.file}:{self.line}"
            raise InputRefused("E_PROBE_KEY", where, f"{self.path(key)} is missing", next_step)

    @noted("")
    def text(self, key: str, allowed: Seq[str] = ()) -> str:
        """Read a non-empty printable string; if `allowed` is given, one of its values."""
        node = self.get(key)
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            self.refuse(
                node.line, f"{self.path(key)} must be text, found {kind(node)}", "quote it if it is text"
            )
        value = node.value
        if allowed and value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else ""
            self.refuse(
                node.line,
                f"{self.path(key)} must be one of {', '.join(allowed)}, found {quoted(value)}",
                hint,
            )
        if not value or not value.isprintable() or value != value.strip() or len(value) > 512:
            self.refuse(
                node.line, f"{self.path(key)} must be 1 to 512 printable characters, found {quoted(value)}"
            )
        return value

    @noted(0.0)
    def number(self, key: str, span: Span) -> float:
        """Read a finite number within `span`; an integer counts as a number, a boolean does not."""
        node = self.get(key)
        return self._number(node, self.path(key), span)

    @noted(0.0)
    def _number(self, node: Node, name: str, span: Span) -> float:
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(node.line, f"{name} must be a number, found {kind(node)}")
        if float(value) not in span:
            self.refuse(node.line, f"{name} must be {span}, found {value}")
        return float(value)

    @noted(0)
    def integer(self, key: str, low: int, high: int) -> int:
        """Read an integer from `low` to `high`; ``3.0`` is no integer."""
        node = self.get(key)
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(node.line, f"{self.path(key)} must be an integer, found {kind(node)}")
        if not low <= value <= high:
            self.refuse(node.line, f"{self.path(key)} must be from {low} to {high}, found {value}")
        return value

    @noted(False)
    def flag(self, key: str) -> bool:
        """Read ``true`` or ``false``; ``yes`` and ``no`` are text."""
        node = self.get(key)
        if not isinstance(node, Scalar) or not isinstance(node.value, bool):
            self.refuse(node.line, f"{self.path(key)} must be true or false, found {kind(node)}")
        return node.value

    @noted(())
    def items(self, key: str) -> tuple[Node, ...]:
        """Return the nodes of a list."""
        node = self.get(key)
        if not isinstance(node, Sequence):
            self.refuse(node.line, f"{self.path(key)} must be a list, found {kind(node)}")
        return node.items

    def numbers(self, key: str, count: int, span: Span) -> tuple[float, ...]:
        """Read a list of exactly `count` numbers within `span`."""
        nodes = self.items(key)
        if len(nodes) != count:
            problem = f"{self.path(key)} must be a list of {count} numbers, found {len(nodes)}"
            note(InputRefused("E_PROBE_VALUE", f"{self.file}:{self.line_of(key)}", problem))
            return (0.0,) * count
        return tuple(self._number(node, f"{self.path(key)}[{n}]", span) for n, node in enumerate(nodes))

    @noted(())
    def names(self, key: str, known: Seq[str], kind: str) -> tuple[str, ...]:
        """Read a list of known names without repetition; an absent list is empty."""
        if self.is_null(key):
            return ()
        names: list[str] = []
        for node in self.items(key):
            name = node.value if isinstance(node, Scalar) else None
            if name not in known:
                problem = f"{self.path(key)} names no {kind}: {quoted(str(name), 40)}"
                self.refuse(node.line, problem, f"known: {', '.join(known)}")
            if name in names:
                self.refuse(node.line, f"{self.path(key)} names {name} twice")
            names.append(str(name))
        return tuple(names)
