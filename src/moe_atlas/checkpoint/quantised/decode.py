"""From an encoding to the pure functions of its format."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from moe_atlas.checkpoint.headers.refuse import refusal
from moe_atlas.checkpoint.quantised import fp4, fp8, packed_integer
from moe_atlas.checkpoint.quantised.encoding import Encoded, Encoding

Parts = Mapping[str, Tensor]


def decode(entry: Encoded, parts: Parts) -> Tensor:
    """The logical tensor, float32 (bfloat16 where that is exact), from its stored parts by role.

    Raises:
        InputRefused: ``E_QUANT`` when the stored shape of packed values is not what was packed.
    """
    encoding, values = entry.encoding, parts["values"]
    if "shape" in parts and tuple(parts["shape"].tolist()) != entry.shape:
        problem = f"packs a matrix {parts['shape'].tolist()}, the header tells of {list(entry.shape)}"
        raise refusal("E_QUANT", entry.parts["shape"], problem)
    if encoding.kind == "fp8":
        return fp8.decode(values, parts["scale"], _block(encoding))
    if encoding.kind == "mxfp4":
        return fp4.decode_mx(values, parts["scale"])
    if encoding.kind == "nvfp4":
        return fp4.decode_nv(values, parts["scale"], parts["global_scale"])
    group = _block(encoding)[1]
    return packed_integer.decode(values, parts["scale"], parts.get("zero_point"), encoding.bits, group)


def round_trip(encoding: Encoding, weight: Tensor) -> Tensor:
    """A weight [R, C] as a format would keep it with scales of its own, float32.

    The scales are those of plain rounding: the largest magnitude of a block fills the format's range. A
    checkpoint's own quantiser may have done better (calibration) or worse.

    Args:
        encoding: the format.
        weight: [R, C], any floating dtype.
    """
    if encoding.kind == "fp8":
        return fp8.round_trip(weight, _block(encoding), exponents=encoding.exponents)
    if encoding.kind == "mxfp4":
        return fp4.round_trip_mx(weight)
    if encoding.kind == "nvfp4":
        return fp4.round_trip_nv(weight)
    group = _block(encoding)[1]
    return packed_integer.round_trip(weight, encoding.bits, group, symmetric=encoding.symmetric)


def _block(encoding: Encoding) -> tuple[int, int]:
    assert encoding.block is not None, "fp8 and packed integers say which elements share a scale"
    return encoding.block
