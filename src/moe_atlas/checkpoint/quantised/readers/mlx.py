"""`quantization` of MLX: `X.weight` in 32-bit words beside `X.scales` and `X.biases`, a matrix or one per expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_atlas.checkpoint.quantised.encoding import Encoded, Encoding
from moe_atlas.checkpoint.quantised.parts import (
    Tensors,
    count_groups,
    group_size,
    misshapen,
    one_of,
    part,
    refuse_orphans,
)
from moe_atlas.checkpoint.quantised.schemes import refuse

BITS = (2, 4, 8)
"""Bit widths that divide a word of 32 bits."""
SCALES = ("F16", "BF16", "F32")
ENDINGS = (".scales", ".biases")


def read(settings: Mapping[str, Any], tensors: Tensors, label: str) -> list[Encoded]:
    """Return the quantised tensors, with the parameters of each module, or of all modules.

    Raises:
        InputRefused: ``E_QUANT`` for settings that are not decoded, and headers that contradict them.
    """
    found = []
    for name, stored in tensors.items():
        module, _, last = name.rpartition(".")
        if last == "weight" and stored.dtype == "U32":
            found.append(_tensor(_encoding(settings, module, label), module, tensors, label))
    refuse_orphans(tensors, found, ENDINGS, label)
    return found


def _encoding(settings: Mapping[str, Any], module: str, label: str) -> Encoding:
    own = settings.get(module, settings)
    if own is False:
        raise refuse(label, f"{module}.weight", "quantised, and left out of quantisation by config.json")
    where = label if own is settings else f"{label}: quantization: {module}"
    if own is True or not isinstance(own, Mapping):
        own = settings
    one_of(own, "mode", ("affine",), where, default="affine")
    bits = one_of(own, "bits", BITS, where)
    return Encoding("affine", (1, group_size(own, where)), bits, symmetric=False)


def _tensor(encoding: Encoding, module: str, tensors: Tensors, label: str) -> Encoded:
    names = {"values": f"{module}.weight", "scale": f"{module}.scales", "offset": f"{module}.biases"}
    values = part(tensors, names, "values", ("U32",), label)
    if len(values.shape) not in (2, 3):
        problem = f"expected a matrix or one per expert, found shape {list(values.shape)}"
        raise refuse(label, values.name, problem)
    assert encoding.block is not None, "groups of columns share a scale"
    columns = values.shape[-1] * 32 // encoding.bits
    groups = count_groups(columns, encoding.block[1], values, label)
    expected = (*values.shape[:-1], groups)
    for role in ("scale", "offset"):
        found = part(tensors, names, role, SCALES, label)
        if found.shape != expected:
            raise misshapen(label, found, expected, f"for groups of {encoding.block[1]} of {columns} columns")
    return Encoded(f"{module}.weight", (*values.shape[:-1], columns), encoding, names)
