"""How the tensors of a pair are stored, and what a pair in two formats would show had nothing been tuned.

A quantised checkpoint differs from the one it was tuned from for two reasons, and content drift cannot tell them
apart. So the base's own experts are put through the tuned checkpoint's format by plain rounding, and their drift is
measured at the very states, experts and quantile of `content_drift`, as `content_quantisation`. It is an estimate
of quantisation's part, and no bound: the tuned checkpoint's quantiser may have rounded better (calibrated scales)
or worse, and the two parts do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_atlas.auditing.layer.side import Side
from moe_atlas.checkpoint.quantised.decode import round_trip
from moe_atlas.checkpoint.quantised.encoding import Encoded, Encoding
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.models.names import ROUTER_TABLE
from moe_atlas.models.spec import TensorRef
from moe_atlas.weights.class_digests import replayed
from moe_atlas.weights.comparison import Comparison, Narrowing

Form = Encoding | str
Storage = dict[str, Form]
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
HELD = {"BF16": ("BF16",), "F16": ("F16",), "F32": ("BF16", "F16", "F32"), "F64": tuple(PLAIN)}
"""The plain dtypes whose values each of them holds exactly."""


def storage(checkpoint: TensorSource, refs: Sequence[TensorRef]) -> Storage:
    """How each of an expert's tensors is stored, by role: a format, or a dtype."""
    return {ref.role: form(checkpoint, ref.stored) for ref in refs}


def form(checkpoint: TensorSource, name: str) -> Form:
    """How one tensor is stored: a format, or a dtype."""
    tensor = checkpoint.logical[name]
    return tensor.encoding if isinstance(tensor, Encoded) else tensor.dtype


def holds(form: Form, other: Form) -> bool:
    """Whether tensors stored like `form` hold every value of tensors that are stored like `other`."""
    if isinstance(other, Encoding):
        return form == other or form in ("F32", "F64")  # what is decoded is float32 at most
    return form == other or (isinstance(form, str) and other in HELD.get(form, ()))


def narrowing(sides: Sequence[Side], names: Sequence[str]) -> Narrowing | None:
    """What the tuned checkpoint's format may lose of one of the base's tensors; `names` has that of each checkpoint."""
    forms = [form(side.checkpoint, name) for side, name in zip(sides, names, strict=True)]
    if len(forms) == 1 or holds(forms[1], forms[0]) or not _rounds(forms[1]):
        return None
    return Narrowing(lambda tensor: _kept(tensor, forms[1]), certain=isinstance(forms[1], str))


def _rounds(form: Form) -> bool:
    return isinstance(form, Encoding) or form in PLAIN


def narrower_classes(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """The classes of tensors that the tuned checkpoint stores in a format that cannot hold all the base's values.

    Returns:
        One row for each class: ``key`` (``stored.router``), the formats of ``base`` and ``tuned``, and ``layers``.
    """
    rows: dict[str, dict[str, Any]] = {}
    base, tuned = ({ref.name: (ref, layer) for ref, layer in replayed(side.spec)} for side in sides)
    for name in base.keys() & tuned.keys():
        (ref, layer), (twin, _) = base[name], tuned[name]
        forms = form(sides[0].checkpoint, ref.stored), form(sides[1].checkpoint, twin.stored)
        if holds(forms[1], forms[0]):
            continue
        row = rows.setdefault(ref.kind, {"base": set(), "tuned": set(), "layers": set()})
        for key, found in (("base", said(forms[0])), ("tuned", said(forms[1])), ("layers", layer)):
            row[key].add(found)
    return [
        {
            "key": f"stored.{kind}",
            **{side: ", ".join(sorted(row[side])) for side in ("base", "tuned")},
            "layers": sorted(layer for layer in row["layers"] if layer is not None),
        }
        for kind, row in sorted(rows.items())
    ]


def said(form: Form) -> str:
    """A format in words: its dtype, or its kind and what shares a scale."""
    if isinstance(form, str):
        return form
    rows, columns = form.block or (0, 0)
    kind = f"{form.bits}-bit integers" if form.kind == "packed_integer" else form.kind
    return f"{kind}, scales of {rows or 'all'}×{columns or 'all'}" if form.block else kind


def stored_whole(sides: Sequence[Side], refs: Sequence[TensorRef]) -> tuple[bool, bool]:
    """Whether a tensor of each checkpoint is, byte for byte, one whole stored tensor, (base, tuned)."""
    found = [
        ref.whole and ref.stored in side.checkpoint.tensors for side, ref in zip(sides, refs, strict=True)
    ]
    return found[0], found[-1]


def compared(sides: Sequence[Side], refs: Sequence[TensorRef], tensors: Sequence[Tensor]) -> Comparison:
    """One look at a tensor of the base and at its counterpart, where there is one."""
    if tensors[0].shape != tensors[-1].shape:
        return _compared_as_far_as_shared(sides, refs, tensors)
    narrow = narrowing(sides, [ref.stored for ref in refs])
    comparison = Comparison(tensors[0].shape, narrow, numbers=refs[0].role == ROUTER_TABLE)
    tuned = tensors[1] if len(tensors) == 2 else None
    comparison.add(tensors[0], tuned, stored=stored_whole(sides, refs))
    return comparison


def _compared_as_far_as_shared(
    sides: Sequence[Side], refs: Sequence[TensorRef], tensors: Sequence[Tensor]
) -> Comparison:
    """One look at two biases of a head, [V] each, of which one has entries for more ids."""
    shared = min(len(tensor) for tensor in tensors)
    comparison = Comparison((shared,), narrowing(sides, [ref.stored for ref in refs]), lone_rows=True)
    comparison.add(tensors[0][:shared], tensors[1][:shared])
    for side, tensor in enumerate(tensors):
        if len(tensor) > shared:
            comparison.add_lone(side, tensor[shared:])
    return comparison


def kept(weights: dict[str, Tensor], formats: Storage) -> dict[str, Tensor]:
    """An expert's tensors as they would come back from being stored like `formats`."""
    return {role: _kept(tensor, formats[role]) for role, tensor in weights.items()}


def _kept(tensor: Tensor, form: Form) -> Tensor:
    return tensor.to(PLAIN[form]) if isinstance(form, str) else round_trip(form, tensor)
