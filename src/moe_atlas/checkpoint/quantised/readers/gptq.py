"""`quant_method` gptq, as AutoGPTQ and GPTQModel write it: `X.qweight` beside `X.scales`, `X.qzeros`, `X.g_idx`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.quantised.encoding import Encoded, Encoding
from moe_atlas.checkpoint.quantised.parts import (
    Tensors,
    count_groups,
    group_size,
    left_out,
    misshapen,
    one_of,
    part,
    refuse_orphans,
    strings,
)
from moe_atlas.checkpoint.quantised.schemes import refuse

BITS = (2, 4, 8)
"""Bit widths that divide a word of 32 bits."""
FORMATS: Mapping[str, Literal["gptq", "gptq_v2"]] = {"gptq": "gptq", "gptq_v2": "gptq_v2"}
SCALES = ("F16", "BF16", "F32")
ENDINGS = (".qzeros", ".scales", ".g_idx")


def read(settings: Mapping[str, Any], tensors: Tensors, label: str) -> list[Encoded]:
    """Return the quantised tensors.

    Raises:
        InputRefused: ``E_QUANT`` for settings that are not decoded, and headers that contradict them.
    """
    encoding = _encoding(settings, label)
    ordered = one_of(settings, "desc_act", (False, True), label, default=False)
    rule_of = left_out(_rules(settings, label), label)
    found = []
    for name in tensors:
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix(".qweight")
        rule = rule_of(module)
        if rule is not None:
            raise refuse(label, name, f"quantised, and left out of quantisation by dynamic: {rule!r}")
        found.append(_matrix(encoding, module, tensors, label, ordered=ordered))
    refuse_orphans(tensors, found, ENDINGS, label)
    return found


def _encoding(settings: Mapping[str, Any], label: str) -> Encoding:
    bits = one_of(settings, "bits", BITS, label)
    symmetric = one_of(settings, "sym", (False, True), label, default=True)
    one_of(settings, "is_marlin_format", (False,), label, default=False)
    for key in ("adapter", "rotation"):
        if settings.get(key):
            raise refuse(label, f"{key} = {settings[key]!r}", "what it adds to the weights is not decoded")
    # Writers that know two formats name their format; older writers know the first format only.
    key = "checkpoint_format" if "checkpoint_format" in settings else "format"
    form = one_of(settings, key, tuple(FORMATS), label, default="gptq")
    return Encoding(FORMATS[form], (1, group_size(settings, label, default=128)), bits, symmetric)


def _rules(settings: Mapping[str, Any], label: str) -> dict[str, str]:
    """Return the rules of `dynamic` that leave modules out, with their patterns; refuse rules that set parameters."""
    rules = strings(settings, "dynamic", label)
    other = [rule for rule in rules if not rule.startswith("-:")]
    if other:
        problem = "other parameters for some of the modules are not decoded"
        raise refuse(label, f"dynamic: {other[0]!r}", problem)
    return {rule: rule.removeprefix("-:") for rule in rules}


def _matrix(encoding: Encoding, module: str, tensors: Tensors, label: str, *, ordered: bool) -> Encoded:
    names = {"values": f"{module}.qweight", "scale": f"{module}.scales", "zero_point": f"{module}.qzeros"}
    if ordered or f"{module}.g_idx" in tensors:
        names["order"] = f"{module}.g_idx"
    values = part(tensors, names, "values", ("I32",), label)
    if len(values.shape) != 2:
        raise refuse(label, values.name, f"expected a matrix, found shape {list(values.shape)}")
    inside = 32 // encoding.bits
    columns, rows = values.shape[0] * inside, values.shape[1]
    require_groups(encoding, (rows, columns), names, tensors, label)
    if "order" in names:
        order = part(tensors, names, "order", ("I32", "I64"), label)
        if order.shape != (columns,):
            raise misshapen(label, order, (columns,), "the group of every column")
    return Encoded(f"{module}.weight", (rows, columns), encoding, names)


def require_groups(
    encoding: Encoding, shape: tuple[int, int], names: Mapping[str, str], tensors: Tensors, label: str
) -> None:
    """Refuse scales or packed zero points unless there is one per row and group of columns.

    Args:
        encoding: the encoding of the matrix.
        shape: shape [R, C] of the decoded matrix.
        names: stored tensors by role.
        tensors: of the checkpoint.
        label: the checkpoint.
    """
    (rows, columns), inside = shape, 32 // encoding.bits
    assert encoding.block is not None, "groups of columns share a scale"
    values = tensors[names["values"]]
    groups = count_groups(columns, encoding.block[1], values, label)
    if rows % inside:
        raise refuse(label, values.name, f"{rows} rows do not divide into words of {inside} zero points")
    scale = part(tensors, names, "scale", SCALES, label)
    zero = part(tensors, names, "zero_point", ("I32",), label)
    expected: tuple[tuple[StoredTensor, tuple[int, int]], ...] = (
        (scale, (groups, rows)),
        (zero, (groups, rows // inside)),
    )
    for found, wanted in expected:
        if found.shape != wanted:
            raise misshapen(label, found, wanted, f"for {[rows, columns]} in groups of {encoding.block[1]}")
