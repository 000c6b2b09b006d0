"""`quant_method` mxfp4: `X_blocks` beside `X_scales`, as gpt-oss stores its experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.quantised.parts import Tensors, float4
from moe_atlas.checkpoint.quantised.schemes import Scheme


def read(settings: Mapping[str, Any], tensors: Tensors, label: str) -> Iterator[Encoded]:
    """Return the quantised tensors.

    Raises:
        InputRefused: ``E_QUANT`` for headers that contradict each other.
    """
    for name in tensors:
        if name.endswith("_blocks"):
            whole = name.removesuffix("_blocks")
            parts = {"values": name, "scale": f"{whole}_scales"}
            yield float4(Scheme("float4", 4, (1, 32)), tensors, parts, whole, label)
