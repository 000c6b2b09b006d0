"""Reading config.json so that nothing in it is ignored unnoticed."""

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
"""Stands for a value that the family has not, so that a key which needs it is refused."""
DISAGREE = "and loaders disagree about which of them holds"
KEEP = "keep the one that the checkpoint was trained with"


class Config:
    """A config.json section that remembers which keys were read.

    Every key that is read says what holds where it is missing: nothing (the checkpoint is refused), or the default of
    transformers' configuration class. A null is no missing key: it is refused unless the class gives it a meaning.

    Args:
        values: the parsed section.
        where: what to call it in messages.
        file: the family's own source file, for whoever has to teach it a key.
        path: what to put in front of a key in messages.
        outer: the level around the section, where some loaders look for the same keys.
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
        """What the key `names[0]` or its aliases say; `absent` may hold `default`, `null` and `kind` of `agreed`."""
        return agreed(*((self, name) for name in names), **absent)

    def integer(self, *names: str, **absent: Any) -> int:
        """A whole number."""
        value: int = self.get(*names, kind=int, **absent)
        return value

    def number(self, *names: str, **absent: Any) -> float:
        """A finite number, returned as float."""
        value: float = self.get(*names, kind=float, **absent)
        return value

    def flag(self, *names: str, **absent: Any) -> bool:
        """True or false."""
        value: bool = self.get(*names, kind=bool, **absent)
        return value

    def text(self, *names: str, **absent: Any) -> str:
        """A string."""
        value: str = self.get(*names, kind=str, **absent)
        return value

    def optional(self, *names: str, default: Any = None) -> Any:
        """The value, None where it is null, and `default` where the key is missing."""
        return self.get(*names, default=default, null=None)

    def integers(self, *names: str, **absent: Any) -> list[int]:
        """A list of whole numbers; null is an empty one."""
        values: list[int] = self.get(*names, kind=list, null=[], **absent)
        for value in values:
            self.typed(names[0], value, int)
        return values

    def expect(self, name: str, *allowed: Any) -> None:
        """Refuse unless the key is absent, null or one of the values that the family computes."""
        value = self.optional(name)
        if value is not None and not any(same(value, item) for item in allowed):
            known = ", ".join(repr(item) for item in allowed)
            raise self.uncomputed(f"{name} = {value!r}", f"this family is implemented for {known} only")

    def implied(self, name: str, value: Any, by: str) -> None:
        """Refuse a key that says something else than another one which the family reads instead."""
        found = self.optional(name)
        if found is not None and not same(found, value):
            raise self.refuse(f"{name} = {found!r}", f"{by} says {value!r}, {DISAGREE}", KEEP)

    def inert(self, *names: str, why: str) -> None:
        """Declare keys that change no number in this family, with the reason."""
        self._read.update(names)
        self._declared |= dict.fromkeys(names, why)

    def declarations(self) -> dict[str, str]:
        """Keys declared inert here and in the sections below, with the reasons."""
        inner = [child.declarations() for child in self._children.values()]
        return {f"{self.path}{key}": why for key, why in self._declared.items()} | {
            key: why for found in inner for key, why in found.items()
        }

    def said(self, name: str) -> tuple[bool, Any]:
        """Whether a key is there at all, and its value; marks it as read.

        Raises:
            InputRefused: `E_FAMILY` where the level around this section says something else.
        """
        self._read.add(name)
        value = self.values.get(name)
        around = self.outer.get(name)
        if around is not None and not same(value, around):
            key = f"{self.path}{name} = {value!r}, and one level above {around!r}"
            raise self.refuse(key, f"two values for one thing, {DISAGREE}", KEEP)
        return name in self.values, value

    def section(self, name: str) -> Config | None:
        """A nested object, tracked like this one; None when missing or null."""
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
        """Refuse the first key that nothing has read and that might change a number of `model`.

        Returns:
            Those of the `accepted` keys, under the names of messages, that stand here with the accepted value and
            would have been refused.
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
        """An `E_FAMILY` error about one key of this section."""
        return InputRefused("E_FAMILY", f"{self.where}: {key}", problem, next_step)

    def uncomputed(self, key: str, problem: str) -> InputRefused:
        """An `E_FAMILY` error about one key that asks for what the family does not compute."""
        step = f"leave the checkpoint as it is; {self.file} would have to compute what the key asks for"
        return self.refuse(key, problem, step)

    def typed(self, name: str, value: Any, kind: type) -> Any:
        """A value of the kind that it should be; a whole number serves as any number."""
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise self.refuse(f"{name} = {value!r}", f"expected {kind.__name__}")
        return value


def agreed(
    *places: tuple[Config, str], default: Any = _REFUSED, null: Any = _REFUSED, kind: type | None = None
) -> Any:
    """What a configuration says of one thing in any of several places: a section and a key each.

    Args:
        places: named in messages in this order.
        default: what holds where the key is in none of them.
        null: what holds where it is null wherever it is.
        kind: what a value must be.

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
