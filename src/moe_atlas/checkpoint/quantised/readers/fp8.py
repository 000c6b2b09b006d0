"""`quant_method` fp8: `X` in float8 beside `X_scale_inv`, as DeepSeek and most others since store it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.quantised.parts import Tensors, scaled
from moe_atlas.checkpoint.quantised.schemes import Scheme, refuse


def read(settings: Mapping[str, Any], tensors: Tensors, label: str) -> Iterator[Encoded]:
    """Return the quantised tensors.

    Raises:
        InputRefused: ``E_QUANT`` for settings that are not decoded, and headers that contradict them.
    """
    block = settings.get("weight_block_size")
    size = tuple(block) if block else (0, 0)
    if len(size) != 2 or not all(type(n) is int and n >= 0 for n in size):
        raise refuse(label, f"weight_block_size = {block!r}", "expected two whole numbers")
    if settings.get("expert_dtype", "fp8") != "fp8":
        raise refuse(
            label, f"expert_dtype = {settings['expert_dtype']!r}", "only fp8 experts are decoded here"
        )
    if settings.get("moe_quant_algo"):
        problem = "experts in another format than the rest are not decoded under quant_method fp8"
        raise refuse(label, f"moe_quant_algo = {settings['moe_quant_algo']!r}", problem)
    for name in tensors:
        if name.endswith("_scale_inv"):
            values = name.removesuffix("_scale_inv")
            yield scaled(Scheme("float", 8, size), tensors, {"values": values, "scale": name}, values, label)
