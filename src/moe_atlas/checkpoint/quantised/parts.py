"""Check the stored parts of a quantised tensor against each other, from headers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.quantised.encoding import Encoded, Encoding
from moe_atlas.checkpoint.quantised.schemes import Scheme, refuse
from moe_atlas.errors import InputRefused

FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
Tensors = Mapping[str, StoredTensor]
Names = Mapping[str, str]
"""Names of stored tensors by role."""


def scaled(scheme: Scheme, tensors: Tensors, names: Names, name: str, label: str) -> Encoded:
    """Return the tensor of 8-bit floats and scales; scales per row or block may have further dimensions of 1."""
    values, scale = (
        part(tensors, names, "values", FLOAT8, label),
        part(tensors, names, "scale", SCALES, label),
    )
    if len(values.shape) not in (2, 3):
        raise refuse(
            label, values.name, f"expected a matrix or one per expert, found shape {list(values.shape)}"
        )
    expected = _scale_shapes(values.shape, scheme.block)
    if scale.shape not in expected:
        raise misshapen(
            label, scale, expected[0], f"for {list(values.shape)} in blocks of {list(scheme.block)}"
        )
    exponents = scale.dtype in ("F8_E8M0", "U8")
    return Encoded(name, values.shape, Encoding("fp8", scheme.block, exponents=exponents), names)


def _scale_shapes(shape: tuple[int, ...], block: tuple[int, int]) -> list[tuple[int, ...]]:
    """Return the shapes in which writers store the scales of a matrix or of a stack of matrices, the plainest first."""
    stack = shape[:-2]
    if block == (0, 0):
        return [(*stack, 1, 1), stack, (), (1,), (1, 1)]
    rows, columns = grid(shape[-2:], block)
    by_row = [(*stack, rows)] if block == (1, 0) else []
    return [(*stack, rows, columns), *by_row, (*stack, rows, 1, columns, 1)]


def packed(scheme: Scheme, tensors: Tensors, names: Names, name: str, label: str) -> Encoded:
    """Return the tensor of integers in 32-bit words along the columns, as compressed-tensors packs them."""
    if "order" in names:
        raise refuse(label, names["order"], "columns quantised in another order (actorder) are not decoded")
    words = part(tensors, names, "values", ("I32",), label)
    scale = part(tensors, names, "scale", SCALES[:3], label)
    part(tensors, names, "shape", ("I32", "I64"), label)
    rows, columns = (*words.shape[:-1], words.shape[-1] * 32 // scheme.bits)
    groups = grid((rows, columns), scheme.block)
    if scale.shape != groups:
        raise misshapen(label, scale, groups, f"for {[rows, columns]} in groups of {scheme.block[1]}")
    if not scheme.symmetric:
        zero = part(tensors, names, "zero_point", ("I32",), label)
        along_rows = (-(-rows * scheme.bits // 32), groups[1])
        if zero.shape != along_rows:
            raise misshapen(label, zero, along_rows, "packed along the rows")
    elif "zero_point" in names:
        raise refuse(label, names["zero_point"], "a zero point where config.json says symmetric")
    encoding = Encoding("packed_integer", scheme.block, scheme.bits, scheme.symmetric)
    return Encoded(name, (rows, columns), encoding, names)


def float4(
    scheme: Scheme, tensors: Tensors, names: Names, name: str, label: str, *, by_rows: bool = False
) -> Encoded:
    """Return the tensor of 4-bit floats, two per byte; with a scale of the whole tensor it is NVFP4.

    Args:
        scheme: bits and groups.
        tensors: the checkpoint's stored tensors.
        names: names of stored tensors by role.
        name: the logical tensor's name.
        label: the checkpoint, for messages.
        by_rows: whether bytes and groups run along the rows of a stack's matrices.
    """
    values = part(tensors, names, "values", ("U8",), label)
    nvidia = "global_scale" in names or "tensor_scale" in names
    scale = part(tensors, names, "scale", ("F8_E4M3",) if nvidia else ("U8", "F8_E8M0"), label)
    if by_rows and (len(values.shape) != 3 or not nvidia):
        problem = f"expected a matrix per expert in NVFP4, found shape {list(values.shape)}"
        raise refuse(label, values.name, problem)
    stored = (values.shape[0], values.shape[2], values.shape[1]) if by_rows else values.shape
    grouped = len(stored) > len(scale.shape)
    columns = 2 * (stored[-1] * stored[-2] if grouped else stored[-1])
    shape = (*stored[: -2 if grouped else -1], columns)
    groups = (*shape[:-1], -(-columns // scheme.block[1]))
    expected = (groups[0], groups[2], groups[1]) if by_rows else groups
    if scale.shape != expected or (scheme.block[1] != (16 if nvidia else 32)):
        raise misshapen(label, scale, expected, f"for {list(shape)} in groups of {scheme.block[1]}")
    if nvidia:
        _require_number(tensors, names, label)
    if by_rows:
        return Encoded(name, (shape[0], shape[2], shape[1]), Encoding("nvfp4_rows", scheme.block, 4), names)
    encoding = Encoding("nvfp4" if nvidia else "mxfp4", scheme.block, 4, exponents=not nvidia)
    return Encoded(name, shape, encoding, names)


def _require_number(tensors: Tensors, names: Names, label: str) -> None:
    """Refuse a scale of the whole tensor that is not a single number."""
    role = "tensor_scale" if "tensor_scale" in names else "global_scale"
    found = part(tensors, names, role, ("F32",), label)
    if math.prod(found.shape) != 1:
        raise misshapen(label, found, (1,), "for one tensor")


def part(tensors: Tensors, names: Names, role: str, dtypes: tuple[str, ...], label: str) -> StoredTensor:
    """Return the stored tensor of a role.

    Raises:
        InputRefused: ``E_QUANT`` if it is missing or has another dtype.
    """
    found = tensors.get(names[role]) if role in names else None
    if found is None:
        where = names.get(role, f"{names['scale']}: {role}")
        raise refuse(label, where, "missing part of a quantised tensor")
    if found.dtype not in dtypes:
        raise refuse(label, found.name, f"expected {' or '.join(dtypes)}, found {found.dtype}")
    return found


def grid(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """Return how many blocks cover the rows and the columns of a matrix; the last blocks may be smaller."""
    rows, columns = (-(-extent // (size or extent)) for extent, size in zip(shape, block, strict=True))
    return rows, columns


def misshapen(label: str, found: StoredTensor, expected: tuple[int, ...], why: str) -> InputRefused:
    """Return the refusal of a part whose shape contradicts the other parts."""
    return refuse(label, found.name, f"expected shape {list(expected)} {why}, found {list(found.shape)}")


def one_of(
    settings: Mapping[str, Any], key: str, known: tuple[Any, ...], label: str, default: Any = None
) -> Any:
    """Return a setting that must have one of the `known` values; `default` if it is not set.

    Raises:
        InputRefused: ``E_QUANT`` for another value or another type.
    """
    value = settings.get(key, default)
    if any(value == one and type(value) is type(one) for one in known):
        return value
    problem = f"not decoded; known: {', '.join(map(repr, known))}"
    raise refuse(label, f"{key} = {value!r}", problem)


def group_size(settings: Mapping[str, Any], label: str, default: int | None = None) -> int:
    """Return how many columns share a scale; 0 means all (stored as -1).

    Raises:
        InputRefused: ``E_QUANT`` if the setting is neither a positive whole number nor -1.
    """
    value = settings.get("group_size", default)
    if type(value) is not int or not (value > 0 or value == -1):
        problem = "expected a positive whole number, or -1 for all columns"
        raise refuse(label, f"group_size = {value!r}", problem)
    return max(value, 0)


def strings(settings: Mapping[str, Any], key: str, label: str) -> list[str]:
    """Return the names of a list or the keys of a mapping; an empty list if the setting is not set.

    Raises:
        InputRefused: ``E_QUANT`` for anything else.
    """
    value = settings.get(key) or []
    if not isinstance(value, list | Mapping) or not all(isinstance(name, str) for name in value):
        raise refuse(label, f"{key} = {value!r}", "expected a list of names")
    return list(value)


def count_groups(columns: int, group: int, stored: StoredTensor, label: str) -> int:
    """Return the number of groups of a matrix's columns.

    Raises:
        InputRefused: ``E_QUANT`` if the columns do not divide into whole groups.
    """
    if columns % (group or columns):
        raise refuse(label, stored.name, f"{columns} columns do not divide into groups of {group}")
    return columns // (group or columns)


def refuse_orphans(tensors: Tensors, found: Iterable[Encoded], endings: tuple[str, ...], label: str) -> None:
    """Refuse a stored tensor with one of a format's endings that belongs to no quantised tensor."""
    used = {name for entry in found for name in entry.parts.values()}
    for name in tensors:
        if name.endswith(endings) and name not in used:
            raise refuse(label, name, "extra part: the values that it would belong to are not stored")


def left_out(expressions: Mapping[str, str], label: str) -> Callable[[str], str | None]:
    """Return a function from a module's name to the first rule that leaves the module unquantised, or None.

    Args:
        expressions: a regular expression for each rule, matched from the beginning of a name.
        label: the checkpoint.

    Raises:
        InputRefused: ``E_QUANT`` for a rule that is no regular expression.
    """
    for rule, expression in expressions.items():
        try:
            re.compile(expression)
        except re.error as error:
            raise refuse(label, rule, f"no regular expression ({error})") from None
    # One expression for all rules: a large checkpoint has a hundred rules and a hundred thousand modules.
    together = re.compile("|".join(f"(?:{expression})" for expression in expressions.values()) or "(?!)")

    def of(module: str) -> str | None:
        if together.match(module) is None:
            return None
        return next(rule for rule, expression in expressions.items() if re.match(expression, module))

    return of
