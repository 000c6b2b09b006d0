"""`quant_method` awq, as AutoAWQ writes its version gemm: `X.qweight` beside `X.scales` and `X.qzeros`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from moe_atlas.checkpoint.quantised.encoding import Encoded, Encoding
from moe_atlas.checkpoint.quantised.parts import (
    Tensors,
    group_size,
    left_out,
    one_of,
    part,
    refuse_orphans,
    strings,
)
from moe_atlas.checkpoint.quantised.readers.gptq import require_groups
from moe_atlas.checkpoint.quantised.schemes import refuse

INSIDE = 8
"""Values per word."""
ENDINGS = (".qzeros", ".scales", ".g_idx")


def read(settings: Mapping[str, Any], tensors: Tensors, label: str) -> list[Encoded]:
    """Return the quantised tensors.

    Raises:
        InputRefused: ``E_QUANT`` for settings that are not decoded, and headers that contradict them.
    """
    bits = one_of(settings, "bits", (4,), label, default=4)
    one_of(settings, "zero_point", (True,), label, default=True)
    _require_gemm(settings, label)
    encoding = Encoding("awq", (1, group_size(settings, label, default=128)), bits, symmetric=False)
    kept = strings(settings, "modules_to_not_convert", label)
    rule_of = left_out({name: rf"(?:.*\.)?{re.escape(name)}(?:\.|$)" for name in kept}, label)
    found = []
    for name in tensors:
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix(".qweight")
        rule = rule_of(module)
        if rule is not None:
            problem = f"quantised, and left out of quantisation by modules_to_not_convert: {rule!r}"
            raise refuse(label, name, problem)
        found.append(_matrix(encoding, module, tensors, label))
    refuse_orphans(tensors, found, ENDINGS, label)
    return found


def _require_gemm(settings: Mapping[str, Any], label: str) -> None:
    """Refuse versions that pack in another order; `version` is the former name of the key `format`."""
    key = "version" if settings.get("version") is not None else "format"
    value = settings.get(key, "gemm")
    if not isinstance(value, str) or value.lower() != "gemm":
        problem = "packed in another order than that of gemm, which is not decoded"
        raise refuse(label, f"{key} = {value!r}", problem)


def _matrix(encoding: Encoding, module: str, tensors: Tensors, label: str) -> Encoded:
    names = {"values": f"{module}.qweight", "scale": f"{module}.scales", "zero_point": f"{module}.qzeros"}
    values = part(tensors, names, "values", ("I32",), label)
    if len(values.shape) != 2:
        raise refuse(label, values.name, f"expected a matrix, found shape {list(values.shape)}")
    shape = (values.shape[1] * INSIDE, values.shape[0])
    require_groups(encoding, shape, names, tensors, label)
    return Encoded(f"{module}.weight", shape, encoding, names)
