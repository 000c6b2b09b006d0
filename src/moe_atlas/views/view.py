"""A JSON object with typed facts: each is checked when it is read, and a strange one is refused by its path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, overload

from moe_atlas.text import shown

T = TypeVar("T")
V = TypeVar("V", bound="View")


class StrangeReceipt(ValueError):
    """A receipt lacks a fact, or holds it in another type.

    Attributes:
        path: where in the receipt, dotted.
        expected: the type that belongs there, in words.
        found: what stands there; None where nothing does.
    """

    def __init__(self, path: str, expected: str, found: Any) -> None:
        self.path, self.expected, self.found = path or "receipt", expected, found
        super().__init__(f"{self.path}: {self.problem}")

    @property
    def problem(self) -> str:
        """What was expected, and what stands there."""
        found = "nothing" if self.found is None else shown(repr(self.found))
        return f"expected {self.expected}, found {found}"


@dataclass(frozen=True)
class View:
    """One JSON object of a receipt, read-only.

    Attributes:
        facts: the object as it is stored.
        path: where in the receipt it stands, dotted.

    Raises:
        StrangeReceipt: it is no JSON object; a fact raises it when it is read.
    """

    facts: Mapping[str, Any]
    path: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.facts, Mapping):
            raise StrangeReceipt(self.path, "an object", self.facts)

    def at(self, key: str) -> str:
        """Return the path of a fact."""
        return f"{self.path}.{key}" if self.path else key

    def number_at(self, key: str) -> float | None:
        """Return a number that is looked up by its key; None where it is null or missing."""
        value = self.facts.get(key)
        return None if value is None else cast(float, _number(value, self.at(key)))


class Fact(Generic[T]):
    """One fact of a view, under the attribute's name or another key.

    Attributes:
        key: its key in the JSON object.
        kind: its JSON type, as the schema calls it.
        of: the view of the objects that it is, or holds.
        optional: whether it may be null or missing, and is None then.
    """

    def __init__(
        self,
        kind: str,
        read: Callable[[Any, str], T],
        key: str = "",
        *,
        of: type[View] | None = None,
        optional: bool = False,
    ) -> None:
        self.kind, self.key, self.of, self.optional = kind, key, of, optional
        self._read = read

    def __set_name__(self, owner: type[View], name: str) -> None:
        self.key = self.key or name

    @overload
    def __get__(self, view: None, owner: type[View]) -> Fact[T]: ...
    @overload
    def __get__(self, view: View, owner: type[View]) -> T: ...
    def __get__(self, view: View | None, owner: type[View]) -> Fact[T] | T:
        if view is None:
            return self
        value = view.facts.get(self.key)
        if value is None and self.optional:
            return cast(T, None)
        return self._read(value, view.at(self.key))

    def __set__(self, view: View, value: object) -> None:
        raise AttributeError(f"{self.key} is read-only")

    def or_none(self) -> Fact[T | None]:
        """Return the same fact, which may be null or missing."""
        return Fact(self.kind, self._read, self.key, of=self.of, optional=True)


def _scalar(words: str, *types: type) -> Callable[[Any, str], Any]:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise StrangeReceipt(path, words, value)
        return value

    return read


_text, _integer = _scalar("a string", str), _scalar("an integer", int)
_number, _flag = _scalar("a number", int, float), _scalar("true or false", bool)
# A receipt that is being derived may still hold tuples, which JSON stores as lists.
_object, _array = _scalar("an object", Mapping), _scalar("a list", list, tuple)


def _each(read: Callable[[Any, str], T]) -> Callable[[Any, str], tuple[T, ...]]:
    return lambda value, path: tuple(
        read(one, f"{path}[{index}]") for index, one in enumerate(_array(value, path))
    )


def text(key: str = "") -> Fact[str]:
    """A string."""
    return Fact("string", _text, key)


def integer(key: str = "") -> Fact[int]:
    """A whole number; a bool is none."""
    return Fact("integer", _integer, key)


def number(key: str = "") -> Fact[float]:
    """A number as it is stored, which may be an int; a bool is none."""
    return Fact("number", _number, key)


def flag(key: str = "") -> Fact[bool]:
    """A bool."""
    return Fact("boolean", _flag, key)


def mapping(key: str = "") -> Fact[Mapping[str, Any]]:
    """A JSON object that is only looked up or passed on."""
    return Fact("object", _object, key)


def texts(key: str = "") -> Fact[tuple[str, ...]]:
    """A list of strings."""
    return Fact("array", _each(_text), key)


def integers(key: str = "") -> Fact[tuple[int, ...]]:
    """A list of whole numbers."""
    return Fact("array", _each(_integer), key)


def integers_or_none(key: str = "") -> Fact[tuple[int | None, ...]]:
    """A list of whole numbers, any of which may be null."""
    return Fact("array", _each(lambda value, path: None if value is None else _integer(value, path)), key)


def groups(key: str = "") -> Fact[tuple[tuple[int, ...], ...]]:
    """A list of lists of whole numbers."""
    return Fact("array", _each(_each(_integer)), key)


def numbers(key: str = "") -> Fact[tuple[float, ...]]:
    """A list of numbers."""
    return Fact("array", _each(_number), key)


def numbers_or_none(key: str = "") -> Fact[tuple[float | None, ...]]:
    """A list of numbers, any of which may be null."""
    return Fact("array", _each(lambda value, path: None if value is None else _number(value, path)), key)


def part(of: type[V], key: str = "") -> Fact[V]:
    """A JSON object with a view of its own."""
    return Fact("object", of, key, of=of)


def parts(of: type[V], key: str = "") -> Fact[tuple[V, ...]]:
    """A list of JSON objects of one view."""
    return Fact("array", _each(of), key, of=of)


def named(of: type[V], key: str = "") -> Fact[dict[str, V]]:
    """A JSON object whose values are objects of one view; a null is left out."""

    def read(value: Any, path: str) -> dict[str, V]:
        found = _object(value, path).items()
        return {name: of(one, f"{path}.{name}") for name, one in found if one is not None}

    return Fact("object", read, key, of=of)
