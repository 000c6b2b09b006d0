"""`quant_method` compressed-tensors: `X.weight` or `X.weight_packed` beside `X.weight_scale`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.quantised.parts import Names, Tensors, float4, packed, scaled
from moe_atlas.checkpoint.quantised.schemes import Scheme, compressed_tensors

PARTS = {
    "zero_point": "weight_zero_point",
    "global_scale": "weight_global_scale",
    "shape": "weight_shape",
    "order": "weight_g_idx",
}
BUILDERS: Mapping[str, Callable[[Scheme, Tensors, Names, str, str], Encoded]] = {
    "float": scaled,
    "integer": packed,
    "float4": float4,
}


def read(settings: Mapping[str, Any], tensors: Tensors, label: str) -> Iterator[Encoded]:
    """Return the quantised tensors, each in the format of its group of modules.

    Raises:
        InputRefused: ``E_QUANT`` for settings that are not decoded, and headers that contradict them.
    """
    scheme_of = compressed_tensors(settings, label)
    for name in tensors:
        module, _, last = name.rpartition(".")
        if last != "weight_scale":
            continue
        weight = f"{module}.weight"
        parts = {"scale": name}
        for role, suffix in PARTS.items():
            if f"{module}.{suffix}" in tensors:
                parts[role] = f"{module}.{suffix}"
        parts["values"] = f"{weight}_packed" if f"{weight}_packed" in tensors else weight
        yield BUILDERS[scheme_of(module).values](scheme_of(module), tensors, parts, weight, label)
