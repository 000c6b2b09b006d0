"""Report all errors of a probe file at once, so that its author can correct them in one go.

Under `together`, reading notes the refusal of a key and goes on. A check across several keys counts only if all of
these keys were read without refusal; otherwise a refused key could be the cause of the failed check.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, cast

from moe_atlas.errors import InputRefused

MOST = 50
"""Greatest number of refusals reported of one file."""

_found: ContextVar[list[InputRefused] | None] = ContextVar("_found", default=None)
_T = TypeVar("_T")
_P = ParamSpec("_P")


class SeveralRefused(InputRefused):
    """Several refusals of one file; code, place, problem and next step are those of the first."""

    def __init__(self, errors: list[InputRefused]) -> None:
        first = errors[0]
        super().__init__(first.code, first.where, first.problem, first.next_step)
        self.errors = errors

    def lines(self) -> list[str]:
        """Return one line for each refusal, in the file's order."""
        more = len(self.errors) - MOST
        tail = [f"{self.code} {self.where.partition(':')[0]}: and {more} more"] if more > 0 else []
        return [str(error) for error in self.errors[:MOST]] + tail

    def __str__(self) -> str:
        return "\n".join(self.lines())


class Noted(Exception):
    """A part could not be read, and its refusal is noted already."""


@contextmanager
def together() -> Iterator[None]:
    """Raise at the end all noted refusals, in the order of their lines.

    Raises:
        InputRefused: the refusal, if there is exactly one.
        SeveralRefused: all refusals, if there are several.
    """
    found: list[InputRefused] = []
    token = _found.set(found)
    try:
        yield
    except Noted:
        pass
    except InputRefused as error:
        found.append(error)
    finally:
        _found.reset(token)
    if found:
        found.sort(key=_line)
        raise found[0] if len(found) == 1 else SeveralRefused(found)


def _line(error: InputRefused) -> int:
    number = error.where.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


def note(error: InputRefused) -> None:
    """Note a refusal for the end of the file; outside of `together`, raise it."""
    found = _found.get()
    if found is None:
        raise error
    found.append(error)


def whole(read: Callable[[], _T]) -> _T:
    """Read a part; raise `Noted` if a refusal was noted while reading it."""
    found = _found.get()
    before = len(found or ())
    value = read()
    if len(found or ()) > before:
        raise Noted
    return value


def attempt(read: Callable[[], _T]) -> _T:
    """Read a part by itself; if it is refused, return None and let `together` refuse the whole file at its end."""
    found = _found.get()
    if found is None:
        return read()
    before = len(found)
    try:
        return whole(read)
    except Noted:
        pass
    except InputRefused as error:
        if len(found) == before:  # otherwise an earlier refusal may be the cause
            found.append(error)
    return cast(_T, None)


def noted(
    placeholder: Any,
) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Decorate a method that reads one key: note its refusal and return `placeholder` as the value."""

    def decorate(read: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(read)
        def reading(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            try:
                return read(*args, **kwargs)
            except InputRefused as error:
                note(error)
            except Noted:
                pass
            return cast(_T, placeholder)

        return reading

    return decorate
