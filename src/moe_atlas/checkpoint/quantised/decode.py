"""Call the pure functions of an encoding's format."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_atlas.checkpoint.headers.refuse import refusal
from moe_atlas.checkpoint.quantised import fp4, fp8, integer_words, packed_integer
from moe_atlas.checkpoint.quantised.encoding import Encoded, Encoding

Parts = Mapping[str, Tensor]


def decode(entry: Encoded, parts: Parts, label: str) -> Tensor:
    """Return the logical tensor, float32 (bfloat16 if that is exact), from its stored parts by role.

    Raises:
        InputRefused: ``E_QUANT`` if the stored shape of packed values contradicts the header, or if zero points or
            groups of columns are out of range; the message names the checkpoint, `label`.
    """
    encoding, values = entry.encoding, parts["values"]
    if "shape" in parts and tuple(parts["shape"].tolist()) != entry.shape:
        problem = f"packs a matrix {parts['shape'].tolist()}, the header tells of {list(entry.shape)}"
        raise refusal("E_QUANT", label, problem, name=entry.parts["shape"])
    if encoding.kind == "fp8":
        return fp8.decode(values, parts["scale"], _block(encoding))
    if encoding.kind == "mxfp4":
        return fp4.decode_mx(values, parts["scale"])
    if encoding.kind in ("nvfp4", "nvfp4_rows"):
        return _decode_nv(encoding, parts)
    return _decode_integers(entry, parts, label)


def _decode_nv(encoding: Encoding, parts: Parts) -> Tensor:
    divides = "global_scale" in parts
    whole = parts["global_scale" if divides else "tensor_scale"]
    if encoding.kind == "nvfp4":
        return fp4.decode_nv(parts["values"], parts["scale"], whole, divides=divides)
    values, scale = (parts[role].mT.contiguous() for role in ("values", "scale"))
    return fp4.decode_nv(values, scale, whole, divides=divides).mT.contiguous()


def _decode_integers(entry: Encoded, parts: Parts, label: str) -> Tensor:
    encoding, values, scale = entry.encoding, parts["values"], parts["scale"]
    bits, group = encoding.bits, _block(encoding)[1]
    if encoding.kind == "affine":
        return integer_words.decode_affine(values, scale, parts["offset"], bits, group)
    if encoding.kind == "awq":
        return integer_words.decode_awq(values, scale, parts["zero_point"], group)
    if encoding.kind == "packed_integer":
        return packed_integer.decode(values, scale, parts.get("zero_point"), bits, group)
    zeros_GR = integer_words.gptq_zeros(parts["zero_point"], bits, less_one=encoding.kind == "gptq")
    _require_range(entry, "zero_point", zeros_GR, (1 << bits) - 1, label)
    columns = values.shape[0] * 32 // bits
    group_C = parts["order"] if "order" in parts else torch.arange(columns) // (group or columns)
    _require_range(entry, "order", group_C, len(scale) - 1, label)
    return integer_words.decode_gptq(values, scale, zeros_GR, group_C, bits)


def _require_range(entry: Encoded, role: str, found: Tensor, last: int, label: str) -> None:
    """Refuse whole numbers outside 0 to `last`, which other loaders may wrap or clamp."""
    low, high = found.aminmax()
    if low < 0 or high > last:
        what = {"zero_point": "a zero point", "order": "a group of columns"}[role]
        worst = int(low) if low < 0 else int(high)
        problem = f"expected {what} from 0 to {last}, found {worst}"
        raise refusal("E_QUANT", label, problem, name=entry.parts[role])


def round_trip(encoding: Encoding, weight: Tensor) -> Tensor:
    """Quantise a weight to a format with new scales and decode it again, float32 [R, C].

    The scales are those of plain rounding: the largest magnitude of a block fills the format's range. A checkpoint's
    own quantiser may round better (by calibration) or worse.

    Args:
        encoding: the format.
        weight: [R, C], any floating dtype.
    """
    if encoding.kind == "fp8":
        return fp8.round_trip(weight, _block(encoding), exponents=encoding.exponents)
    if encoding.kind == "mxfp4":
        return fp4.round_trip_mx(weight)
    if encoding.kind in ("nvfp4", "nvfp4_rows"):
        return fp4.round_trip_nv(weight)
    group = _block(encoding)[1]
    return packed_integer.round_trip(weight, encoding.bits, group, symmetric=encoding.symmetric)


def _block(encoding: Encoding) -> tuple[int, int]:
    assert encoding.block is not None, "all but 4-bit floats say which elements share a scale"
    return encoding.block
