"""Storage formats of a pair, and the drift that a change of format alone would cause.

A quantised tune differs from its base by training and by quantisation, and content drift cannot separate these causes.
So the audit rounds the base's experts to the tuned checkpoint's format by plain rounding, and measures their drift at
the states, experts and quantile of `content_drift`. The result is `content_quantisation`. It estimates the share of
quantisation but does not bound it: the tuned checkpoint's quantiser may have rounded better (calibrated scales) or
worse, and the two shares do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_atlas.auditing.layer.side import Side
from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.quantised.decode import round_trip
from moe_atlas.checkpoint.quantised.encoding import Encoded, Encoding
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.models.names import ROUTER_TABLE
from moe_atlas.models.spec import TensorRef
from moe_atlas.weights.class_digests import replayed
from moe_atlas.weights.comparison import Narrowing, TensorComparison

Format = Encoding | str
Storage = dict[str, Format]
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
HELD = {"BF16": ("BF16",), "F16": ("F16",), "F32": ("BF16", "F16", "F32"), "F64": tuple(PLAIN)}
"""For each plain dtype, the plain dtypes whose values it holds exactly."""


def storage(checkpoint: TensorSource, refs: Sequence[TensorRef]) -> Storage:
    """Return the storage format of each of an expert's tensors, by role: an encoding or a plain dtype."""
    return {ref.role: storage_format(checkpoint, ref.stored) for ref in refs}


def storage_format(checkpoint: TensorSource, name: str) -> Format:
    """Return the storage format of one tensor: an encoding or a plain dtype."""
    tensor = checkpoint.logical[name]
    return tensor.encoding if isinstance(tensor, Encoded) else tensor.dtype


def holds(own: Format, other: Format) -> bool:
    """Return whether the format `own` holds every value that tensors in the format `other` can have."""
    if isinstance(other, Encoding):
        return own == other or own in ("F32", "F64")  # decoding gives float32 at most
    return own == other or (isinstance(own, str) and other in HELD.get(own, ()))


def narrowing(sides: Sequence[Side], names: Sequence[str]) -> Narrowing | None:
    """Return the rounding of one tensor by the tuned checkpoint's format, or None if the format loses nothing.

    Args:
        sides: the checkpoints under audit.
        names: the logical name of the tensor in each checkpoint.
    """
    formats = [storage_format(side.checkpoint, name) for side, name in zip(sides, names, strict=True)]
    if len(formats) == 1 or holds(formats[1], formats[0]) or not _rounds(formats[1]):
        return None
    tuned = formats[1]
    return Narrowing(lambda tensor: _requantise_tensor(tensor, tuned), certain=isinstance(tuned, str))


def _rounds(own: Format) -> bool:
    return isinstance(own, Encoding) or own in PLAIN


def narrower_classes(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Return the classes of tensors that the tuned checkpoint stores in a format that cannot hold all base values.

    Returns:
        One row for each class: ``key`` (``stored.router``), the formats of ``base`` and ``tuned``, and ``layers``.
    """
    rows: dict[str, dict[str, Any]] = {}
    base, tuned = ({ref.name: (ref, layer) for ref, layer in replayed(side.spec)} for side in sides)
    for name in base.keys() & tuned.keys():
        (ref, layer), (twin, _) = base[name], tuned[name]
        formats = [
            storage_format(side.checkpoint, own.stored) for side, own in zip(sides, (ref, twin), strict=True)
        ]
        if holds(formats[1], formats[0]):
            continue
        row = rows.setdefault(ref.kind, {"base": set(), "tuned": set(), "layers": set()})
        for key, found in (
            ("base", describe(formats[0])),
            ("tuned", describe(formats[1])),
            ("layers", layer),
        ):
            row[key].add(found)
    return [
        {
            "key": f"stored.{kind}",
            **{side: ", ".join(sorted(row[side])) for side in ("base", "tuned")},
            "layers": sorted(layer for layer in row["layers"] if layer is not None),
        }
        for kind, row in sorted(rows.items())
    ]


def describe(own: Format) -> str:
    """Describe a format: its dtype, or its kind and the block of elements that shares a scale."""
    if isinstance(own, str):
        return own
    rows, columns = own.block or (0, 0)
    kind = f"{own.bits}-bit integers" if own.kind == "packed_integer" else own.kind
    return f"{kind}, scales of {rows or 'all'}×{columns or 'all'}" if own.block else kind


def stored_whole(sides: Sequence[Side], refs: Sequence[TensorRef]) -> tuple[bool, bool]:
    """Return whether a tensor is, byte for byte, one whole stored tensor, (base, tuned)."""
    found = [
        ref.whole and side.transform is None and isinstance(side.checkpoint.logical[ref.stored], StoredTensor)
        for side, ref in zip(sides, refs, strict=True)
    ]
    return found[0], found[-1]


def compare_tensors(
    sides: Sequence[Side], refs: Sequence[TensorRef], tensors: Sequence[Tensor]
) -> TensorComparison:
    """Compare a tensor of the base with its counterpart, if there is one."""
    if tensors[0].shape != tensors[-1].shape:
        return _compare_shared_entries(sides, refs, tensors)
    narrow = narrowing(sides, [ref.stored for ref in refs])
    comparison = TensorComparison(tensors[0].shape, narrow, numbers=refs[0].role == ROUTER_TABLE)
    tuned = tensors[1] if len(tensors) == 2 else None
    comparison.add(tensors[0], tuned, stored=stored_whole(sides, refs))
    return comparison


def _compare_shared_entries(
    sides: Sequence[Side], refs: Sequence[TensorRef], tensors: Sequence[Tensor]
) -> TensorComparison:
    """Compare the biases of two heads, [V] each, of which one has entries for more ids."""
    shared = min(len(tensor) for tensor in tensors)
    comparison = TensorComparison((shared,), narrowing(sides, [ref.stored for ref in refs]), lone_rows=True)
    comparison.add(tensors[0][:shared], tensors[1][:shared])
    for number, tensor in enumerate(tensors):
        if len(tensor) > shared:
            comparison.add_lone(number, tensor[shared:])
    return comparison


def requantise(weights: dict[str, Tensor], formats: Storage) -> dict[str, Tensor]:
    """Return an expert's tensors after a round trip through other storage formats."""
    return {role: _requantise_tensor(tensor, formats[role]) for role, tensor in weights.items()}


def _requantise_tensor(tensor: Tensor, other: Format) -> Tensor:
    return tensor.to(PLAIN[other]) if isinstance(other, str) else round_trip(other, tensor)
