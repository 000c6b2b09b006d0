"""Read config.json so that no key is ignored unnoticed."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from moe_atlas.configuration.unread import changes_nothing, same
from moe_atlas.errors import InputRefused
from moe_atlas.models.spec import ModelSpec

_REFUSED: Any = object()
"""Marks a missing default or a null without meaning, so that the key is refused."""
DISAGREE = "and loaders disagree about which of them holds"
KEEP = "keep the one that the checkpoint was trained with"


class Config:
    """A config.json section that remembers which keys were read.

    Every read of a key states the value of a missing key: none (the checkpoint is refused), or the default of
    transformers' configuration class. A null is not a missing key: it is refused unless the class gives it a meaning.

    Args:
        values: the parsed section.
        where: the section's name in messages.
        file: the family's own source file, which would have to read an unknown key.
        path: prefix of the section's keys in messages.
        outer: the section one level above, where some loaders look for the same keys.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str,
        file: str = "moe_atlas/families",
        path: str = "",
        outer: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.values = values
        self.where = where
        self.file = file
        self.path = path
        self.outer = outer
        self._declared: dict[str, str] = {}
        self._read: set[str] = set()
        self._children: dict[str, Config] = {}

    def get(self, *names: str, **absent: Any) -> Any:
        """Return the value of a key or of its aliases; `absent` may hold `default`, `null` and `kind` of `agreed`."""
        return agreed(*((self, name) for name in names), **absent)

    def integer(self, *names: str, **absent: Any) -> int:
        """Return a whole number."""
        value: int = self.get(*names, kind=int, **absent)
        return value

    def number(self, *names: str, **absent: Any) -> float:
        """Return a finite number as float."""
        value: float = self.get(*names, kind=float, **absent)
        return value

    def flag(self, *names: str, **absent: Any) -> bool:
        """Return true or false."""
        value: bool = self.get(*names, kind=bool, **absent)
        return value

    def text(self, *names: str, **absent: Any) -> str:
        """Return a string."""
        value: str = self.get(*names, kind=str, **absent)
        return value

    def optional(self, *names: str, default: Any = None) -> Any:
        """Return the value, None for a null, and `default` for a missing key."""
        return self.get(*names, default=default, null=None)

    def integers(self, *names: str, **absent: Any) -> list[int]:
        """Return a list of whole numbers; a null is an empty list."""
        values: list[int] = self.get(*names, kind=list, null=[], **absent)
        for value in values:
            self.typed(names[0], value, int)
        return values

    def expect(self, name: str, *allowed: Any) -> None:
        """Refuse a value that the family does not compute; a missing key and a null pass."""
        value = self.optional(name)
        if value is not None and not any(same(value, item) for item in allowed):
            known = ", ".join(repr(item) for item in allowed)
            raise self.uncomputed(f"{name} = {value!r}", f"this family is implemented for {known} only")

    def implied(self, name: str, value: Any, by: str) -> None:
        """Refuse a key that contradicts `value`, which the family took from the key `by` instead."""
        found = self.optional(name)
        if found is not None and not same(found, value):
            raise self.refuse(f"{name} = {found!r}", f"{by} says {value!r}, {DISAGREE}", KEEP)

    def inert(self, *names: str, why: str) -> None:
        """Declare keys that change no number in this family, with the reason."""
        self._read.update(names)
        self._declared |= dict.fromkeys(names, why)

    def declarations(self) -> dict[str, str]:
        """Return the keys declared inert here and in the sections below, with the reasons."""
        inner = [child.declarations() for child in self._children.values()]
        return {f"{self.path}{key}": why for key, why in self._declared.items()} | {
            key: why for found in inner for key, why in found.items()
        }

    def said(self, name: str) -> tuple[bool, Any]:
        """Mark a key as read, and return whether it is present and its value.

        Raises:
            InputRefused: `E_FAMILY` if the section one level above holds another value.
        """
        self._read.add(name)
        value = self.values.get(name)
        around = self.outer.get(name)
        if around is not None and not same(value, around):
            key = f"{self.path}{name} = {value!r}, and one level above {around!r}"
            raise self.refuse(key, f"two values for one thing, {DISAGREE}", KEEP)
        return name in self.values, value

    def section(self, name: str) -> Config | None:
        """Return a nested object as a section of its own; None if it is missing or null."""
        value = self.optional(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(f"{name} = {value!r}", "expected an object")
        child = Config(value, f"{self.where}: {name}", self.file, f"{self.path}{name}.")
        return self._children.setdefault(name, child)

    def refuse_unread(
        self, model: ModelSpec, accepted: Mapping[str, Any], *, nested: bool = False
    ) -> dict[str, Any]:
        """Refuse the first unread key that might change a number of `model`.

        Returns:
            The `accepted` keys, under their names in messages, that this section holds with the accepted value and that
            would otherwise have been refused.
        """
        used: dict[str, Any] = {}
        for name, value in self.values.items():
            key = f"{self.path}{name}"
            if name in self._read or changes_nothing(name, value, model, nested=nested):
                continue
            if key not in accepted or not same(accepted[key], value):
                raise self.refuse(
                    f"{name} = {value!r}",
                    "the key is read by nothing and might change the mathematics",
                    f"leave the checkpoint as it is; if the key changes nothing, accept it on the record with "
                    f"--accept-config-key {shlex.quote(f'{key}={json.dumps(value)}')}, or teach {self.file} to read it",
                )
            used[key] = value
        for child in self._children.values():
            used |= child.refuse_unread(model, accepted, nested=True)
        return used

    def refuse(self, key: str, problem: str, next_step: str = "") -> InputRefused:
        """Return an `E_FAMILY` error about a key of this section."""
        return InputRefused("E_FAMILY", f"{self.where}: {key}", problem, next_step)

    def uncomputed(self, key: str, problem: str) -> InputRefused:
        """Return an `E_FAMILY` error about a key whose value the family does not compute."""
        step = f"leave the checkpoint as it is; {self.file} would have to compute what the key asks for"
        return self.refuse(key, problem, step)

    def typed(self, name: str, value: Any, kind: type) -> Any:
        """Return `value` if it is of this kind, else refuse; a whole number is a valid float."""
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise self.refuse(f"{name} = {value!r}", f"expected {kind.__name__}")
        return value


def agreed(
    *places: tuple[Config, str], default: Any = _REFUSED, null: Any = _REFUSED, kind: type | None = None
) -> Any:
    """Return the value of a setting that may stand in several places, each a section and a key.

    Args:
        places: the places, in the order of messages.
        default: the value if no place holds the key.
        null: the value if every place that holds the key has a null.
        kind: the type of a value.

    Raises:
        InputRefused: `E_FAMILY` for different values, for a missing key or a null that has no meaning, and for a
            value of another kind.
    """
    said = {place: place[0].said(place[1]) for place in places}
    found = {f"{c.path}{name}": value for (c, name), (_, value) in said.items() if value is not None}
    section, key = min(places, key=lambda place: len(place[0].path))
    if not found:
        present = any(there for there, _ in said.values())
        value = null if present else default
        if value is _REFUSED:
            missing = "the key is null" if present else "the key is missing"
            raise section.refuse(key, f"{missing}, and the family has no safe default for it")
        return value
    one, *others = found.values()
    if not all(same(one, other) for other in others):
        named = ", ".join(f"{key} = {value!r}" for key, value in found.items())
        raise section.refuse(named, f"two values for one thing, {DISAGREE}", KEEP)
    if type(one) is float and not math.isfinite(one):
        raise section.refuse(f"{key} = {one!r}", "expected a finite number")
    return one if kind is None else section.typed(next(iter(found)), one, kind)
