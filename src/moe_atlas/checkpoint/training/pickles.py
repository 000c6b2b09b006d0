"""An interpreter of pickles that only builds data: it imports nothing, calls nothing and knows no class.

``pickle.load`` does whatever a file says. torch.distributed.checkpoint writes its metadata, and torch.save the
description of a tensor, as pickles. This interpreter reads the opcodes that these two writers use (those of Python's
pickler, protocols 2 to 5). A global is a name, and only a name from a given list; "calling" a name gives a `Record` of
the name and its arguments. Anything else is refused with the opcode and its place.

`pickletools`, of the standard library, knows the code of each opcode and how its argument is written.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from moe_atlas.checkpoint.headers.refuse import refusal, shown
from moe_atlas.errors import InputRefused

MAX_DEPTH = 16
"""The most containers within each other."""
MAX_RECORDS = 4_000_000
MAX_MEMO = 32_000_000
"""The most values that a pickle may store to use again."""
MAX_OPCODES = 200_000_000
MAX_INTEGER_BYTES = 9
"""Bytes of a long integer; one more than those of a number of bytes in a file."""

NEXT_STEP = "save the checkpoint again with torch.distributed.checkpoint, and give what it writes"
_CONTAINERS = (tuple, list, dict)


class Name(str):
    """A global of a pickle, such as ``torch.Size``: its name and nothing else."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Record:
    """What a pickle makes by calling a name.

    Attributes:
        name: the name.
        arguments: the arguments of the call.
        state: the state that the pickle sets afterwards: a dict or a tuple; None without one.
    """

    name: Name
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(slots=True, eq=False)
class Persistent:
    """What a pickle refers to by an identifier, such as the storage of a tensor."""

    identifier: Any


class _Mark:
    """Marks where the members of a container begin on the stack."""


_MARK = _Mark()


def read_pickle(raw: bytes, names: Collection[str], label: str, *, persistent: bool = False) -> Any:
    """Return what a pickle holds, as plain data.

    Args:
        raw: the bytes of the pickle.
        names: the globals that it may name, as ``module.name``.
        label: what messages call the file.
        persistent: whether it may refer to something outside by identifier.

    Returns:
        The value: None, bool, int, float, str, tuple, list, dict, `Name`, `Record` and `Persistent`.

    Raises:
        InputRefused: ``E_PICKLE``.
    """
    machine, stream = _Machine(names, label, persistent), io.BytesIO(raw)
    try:
        while machine.step(stream):
            pass
    except (ValueError, OverflowError, UnicodeError) as error:
        problem = f"is no whole pickle: {shown(str(error))} (byte {machine.position})"
        raise refusal("E_PICKLE", label, problem, NEXT_STEP) from None
    return machine.result()


@dataclass
class _Machine:
    names: Collection[str]
    label: str
    persistent: bool
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    depths: dict[int, int] = field(default_factory=dict)
    opcode: str = ""
    position: int = 0
    steps: int = 0
    records: int = 0

    def step(self, stream: io.BytesIO) -> bool:
        """Take the next opcode, and its argument only if the opcode is known; return whether another one follows."""
        self.position = stream.tell()
        code = stream.read(1)
        found = _OPCODES.get(code.decode("latin-1"))
        if found is None:
            raise ValueError(
                "it ends before its last opcode" if not code else f"no opcode has the code {code!r}"
            )
        self.opcode, self.steps = found.name, self.steps + 1
        if self.opcode not in _KNOWN:
            raise self.refuse("uses an opcode that no checkpoint needs")
        if self.steps > MAX_OPCODES:
            raise self.refuse(f"holds more than {MAX_OPCODES} opcodes")
        argument = None if found.arg is None else found.arg.reader(stream)
        if self.opcode in _SCALARS:
            self.push(_SCALARS[self.opcode](argument))
        elif self.opcode in _ACTIONS:
            _ACTIONS[self.opcode](self, argument)
        return self.opcode != "STOP"

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise self.refuse("does not leave one value")
        return self.stack[0]

    def refuse(self, problem: str) -> InputRefused:
        where = f" ({self.opcode} at byte {self.position})"
        return refusal("E_PICKLE", self.label, f"its pickle {problem}{where}", NEXT_STEP)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.refuse("takes a value that is not there")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        value = self.pop()
        self.push(value)
        if type(value) is not kind:
            raise self.refuse(f"expects a {kind.__name__} and finds a {type(value).__name__}")
        return value

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise self.refuse("takes members that are not there")
        begin = self.marks.pop()
        members = self.stack[begin:]
        del self.stack[begin:]
        return members

    def mark(self, _: Any) -> None:
        if len(self.marks) >= MAX_DEPTH:
            raise self.refuse(f"nests more than {MAX_DEPTH} levels deep")
        self.marks.append(len(self.stack))

    def contain(self, container: Any, members: Collection[Any]) -> None:
        """Note how deep a container is once it holds these members."""
        inner = max((self.depth(member) for member in members), default=0)
        if inner >= MAX_DEPTH:
            raise self.refuse(f"nests more than {MAX_DEPTH} levels deep")
        if inner:
            self.depths[id(container)] = max(self.depths.get(id(container), 1), inner + 1)

    def depth(self, value: Any) -> int:
        if type(value) is Record:
            return self.depths.get(id(value), 0)
        return self.depths.get(id(value), 1) if type(value) in _CONTAINERS else 0

    def tuple_of(self, members: list[Any]) -> None:
        made = tuple(members)
        self.contain(made, made)
        self.push(made)

    def append(self, members: list[Any]) -> None:
        target = self.top(list)
        self.contain(target, members)
        target.extend(members)

    def set_items(self, members: list[Any]) -> None:
        target = self.top(dict)
        keys, values = members[::2], members[1::2]
        if len(keys) != len(values):
            raise self.refuse("sets a key without a value")
        self.contain(target, values)
        for key, value in zip(keys, values, strict=True):
            # Other keys would be hashed and compared by what the file makes of them.
            if type(key) not in (str, int, Record):
                raise self.refuse(f"has a key of type {type(key).__name__}")
            if key in target:
                raise self.refuse("sets a key twice")
            target[key] = value

    def put(self, index: int) -> None:
        value = self.pop()
        self.push(value)
        if index in self.memo or len(self.memo) >= MAX_MEMO:
            raise self.refuse("stores a value twice" if index in self.memo else "remembers too many values")
        self.memo[index] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.refuse("recalls a value that it never stored")
        self.push(self.memo[index])

    def name(self, text: str) -> None:
        if text not in self.names:
            raise self.refuse(f"names '{shown(text)}', which no checkpoint needs")
        self.push(Name(text))

    def name_from_stack(self, _: Any) -> None:
        attribute, module = self.pop(), self.pop()
        if type(module) is not str or type(attribute) is not str:
            raise self.refuse("names a global that is no text")
        self.name(f"{module}.{attribute}")

    def call(self, _: Any) -> None:
        arguments, name = self.pop(), self.pop()
        if type(name) is not Name or type(arguments) is not tuple:
            raise self.refuse("calls something that is no name")
        self.records += 1
        if self.records > MAX_RECORDS:
            raise self.refuse(f"holds more than {MAX_RECORDS} records")
        made = Record(name, arguments)
        self.contain(made, (arguments,))
        self.push(made)

    def build(self, _: Any) -> None:
        state = self.pop()
        target = self.top(Record)
        if target.state is not None or type(state) not in (dict, tuple):
            raise self.refuse("sets the state of a record that has one, or to no state")
        self.contain(target, (state,))
        target.state = state

    def refer(self, _: Any) -> None:
        if not self.persistent:
            raise self.refuse("refers to something outside of it")
        self.push(Persistent(self.pop()))

    def integer(self, value: int) -> None:
        if value.bit_length() > 8 * MAX_INTEGER_BYTES:
            raise self.refuse("holds an integer that is too long")
        self.push(value)

    def nothing(self, _: Any) -> None:
        pass


_SCALARS: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT"), lambda value: value),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE"), lambda value: value),
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.nothing,
    "FRAME": _Machine.nothing,
    "MARK": _Machine.mark,
    "LONG1": _Machine.integer,
    "TUPLE": lambda machine, _: machine.tuple_of(machine.pop_mark()),
    "TUPLE1": lambda machine, _: machine.tuple_of([machine.pop()]),
    "TUPLE2": lambda machine, _: machine.tuple_of([machine.pop(), machine.pop()][::-1]),
    "TUPLE3": lambda machine, _: machine.tuple_of([machine.pop(), machine.pop(), machine.pop()][::-1]),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": lambda machine, text: machine.name(text.replace(" ", ".", 1)),
    "STACK_GLOBAL": _Machine.name_from_stack,
    "NEWOBJ": _Machine.call,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.refer,
}
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_KNOWN = frozenset({"STOP", *_SCALARS, *_ACTIONS})
