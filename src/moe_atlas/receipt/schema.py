"""Check the form of a receipt and of its window data before anything is computed from them.

`receipt.schema.json` (JSON Schema 2020-12, hand-written) documents the form. The checker here implements the keywords
that this schema uses, and refuses a schema with any other keyword.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.receipt.array_file import Arrays
from moe_atlas.system.limits import MAX_CELLS
from moe_atlas.text import shown
from moe_atlas.window_arrays import LAYER_ARRAYS, OUTPUTS, WINDOWS, WindowArray

Problem = tuple[str, str]
MAX_PROBLEMS = 1000
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
}
_ANNOTATIONS = {"$schema", "$id", "$defs", "title", "description", "$comment"}


@cache
def schema() -> dict[str, Any]:
    """Return the documented JSON Schema of a receipt."""
    text = resources.files("moe_atlas.receipt").joinpath("receipt.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def schema_problems(receipt: Any) -> list[Problem]:
    """Return the (path, problem) of each place where an object differs from the documented form of a receipt."""
    problems: list[Problem] = []
    for problem in _check(receipt, schema(), ""):
        problems.append(problem)
        if len(problems) >= MAX_PROBLEMS:
            break
    return problems


def block_problems(key: str, value: Any) -> list[Problem]:
    """Return where one top-level block of a receipt departs from its documented form."""
    return list(_check(value, schema()["properties"][key], key))


def _check(value: Any, rule: Mapping[str, Any], path: str) -> Iterator[Problem]:
    for keyword, wanted in rule.items():
        if keyword not in _ANNOTATIONS:
            yield from _KEYWORDS[keyword](value, wanted, path, rule)


def _ref(value: Any, wanted: str, path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    yield from _check(value, schema()["$defs"][wanted.removeprefix("#/$defs/")], path)


def _type(value: Any, wanted: Any, path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    names = [wanted] if isinstance(wanted, str) else wanted
    if not any(_TYPES[name](value) for name in names):
        yield path, f"expected {' or '.join(names)}, found {shown(repr(value))}"


def _enum(value: Any, wanted: list[Any], path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    if not any(type(value) is type(one) and value == one for one in wanted):
        yield path, f"expected one of {wanted}, found {shown(repr(value))}"


def _const(value: Any, wanted: Any, path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    yield from _enum(value, [wanted], path, rule)


def _required(value: Any, wanted: list[str], path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    if isinstance(value, dict):
        for key in wanted:
            if key not in value:
                yield _join(path, key), "missing"


def _properties(
    value: Any, wanted: Mapping[str, Any], path: str, rule: Mapping[str, Any]
) -> Iterator[Problem]:
    if isinstance(value, dict):
        for key, inner in wanted.items():
            if key in value:
                yield from _check(value[key], inner, _join(path, key))


def _additional(value: Any, wanted: Any, path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    if not isinstance(value, dict):
        return
    for key in value:
        if key in rule.get("properties", {}):
            continue
        if wanted is False:
            yield _join(path, shown(key)), "unknown key"
        elif isinstance(wanted, dict):
            yield from _check(value[key], wanted, _join(path, shown(key)))


def _items(value: Any, wanted: Mapping[str, Any], path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _check(item, wanted, f"{path}[{index}]")


def _min_items(value: Any, wanted: int, path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    if isinstance(value, list) and len(value) < wanted:
        yield path, f"expected at least {wanted} entries, found {len(value)}"


def _max_items(value: Any, wanted: int, path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    if isinstance(value, list) and len(value) > wanted:
        yield path, f"expected at most {wanted} entries, found {len(value)}"


def _pattern(value: Any, wanted: str, path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    if isinstance(value, str) and not re.search(wanted, value):
        yield path, f"does not match {wanted}: {shown(repr(value))}"


def _minimum(value: Any, wanted: float, path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    if _TYPES["number"](value) and value < wanted:
        yield path, f"expected at least {wanted}, found {value}"


def _maximum(value: Any, wanted: float, path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    if _TYPES["number"](value) and value > wanted:
        yield path, f"expected at most {wanted}, found {value}"


def _any_of(value: Any, wanted: list[Any], path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    trials = [list(_check(value, one, path)) for one in wanted]
    if all(trials):
        yield min(trials, key=len)[0]


def _if(value: Any, wanted: Mapping[str, Any], path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    holds = not list(_check(value, wanted, path))
    yield from _check(value, rule.get("then" if holds else "else", {}), path)


def _nothing(value: Any, wanted: Any, path: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    return iter(())  # `if` applies `then` and `else`


_KEYWORDS: dict[str, Callable[[Any, Any, str, Mapping[str, Any]], Iterator[Problem]]] = {
    "$ref": _ref,
    "type": _type,
    "enum": _enum,
    "const": _const,
    "required": _required,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "minItems": _min_items,
    "maxItems": _max_items,
    "pattern": _pattern,
    "minimum": _minimum,
    "maximum": _maximum,
    "anyOf": _any_of,
    "if": _if,
    "then": _nothing,
    "else": _nothing,
}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def window_problems(receipt: Mapping[str, Any], windows: Arrays) -> list[Problem]:
    """Return the window arrays that do not fit the receipt in name, length, dtype or range."""
    columns = {array.name: windows.get(array.name) for array in WINDOWS}
    if any(column is None or column.dtype != np.int32 or column.ndim != 1 for column in columns.values()):
        return [("windows", f"expected int32 vectors {', '.join(array.key for array in WINDOWS)}")]
    domain_W = windows["windows.domain"]
    domains = receipt["probe"]["domains"]
    if any(column is not None and len(column) != len(domain_W) for column in columns.values()):
        return [("windows", "the window columns differ in length")]
    if not len(domain_W) or domain_W.min() < 0 or domain_W.max() >= len(domains):
        return [("windows.domain", f"expected numbers of the {len(domains)} domains")]
    if int(windows["windows.document"].min()) < 0:
        return [("windows.document", "expected numbers from 0")]
    documents = len(np.unique(windows["windows.document"]))
    if documents * receipt["probe"]["policy"]["resamples"] > MAX_CELLS:
        return [("probe.policy.resamples", "more resamples of documents than a verifier holds")]
    base = sum(domains[number]["role"] == "base" for number in domain_W.tolist())
    known = _known_arrays(receipt)
    return [
        (name, problem)
        for name, values in windows.items()
        if name not in columns
        for problem in _array_problems(known.get(name), values, len(domain_W), base)
    ]


def _known_arrays(receipt: Mapping[str, Any]) -> dict[str, tuple[WindowArray, int]]:
    """Return the arrays that the window data of this receipt may hold, by name, with the experts of their layer."""
    found = {array.name: (array, 0) for array in OUTPUTS.values()}
    for layer in receipt["layers"]:
        arrays = (array for array in LAYER_ARRAYS.values() if array.stored)
        found |= {array.at(layer["layer"]): (array, layer["experts"]) for array in arrays}
    return found


def _array_problems(
    known: tuple[WindowArray, int] | None, values: NDArray[Any], windows: int, base: int
) -> Iterator[str]:
    if known is None:
        yield "belongs to no layer of the receipt"
        return
    array, experts = known
    if array.place == "output":
        if values.shape != (windows,) or values.dtype != array.dtype:
            yield f"expected {array.dtype} [{windows}], found {values.dtype} {list(values.shape)}"
        return
    rows = windows if array.every_window else base
    wanted = (rows, experts) if array.by_expert else (rows,)
    if values.shape != wanted:
        yield f"expected shape {list(wanted)}, found {list(values.shape)}"
    if array.dtype == "int32" and (values.dtype != np.int32 or (values.size and values.min() < 0)):
        yield "expected int32 counts from 0"
