"""Read logical tensors: the only module that turns stored tensors into the matrices of the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from moe_atlas.checkpoint.reader import Reader
from moe_atlas.models.spec import TensorRef

EntryKey = tuple[str, int | None]
"""The unit of reading, (name, index): a stored tensor, or entry `index` of its leading dimension."""


class ReaderLike(Protocol):
    """A checkpoint reader, as far as loading uses it."""

    def read(self, name: str, index: int | None = None) -> Tensor:
        """Read a stored tensor, or entry `index` of its leading dimension, in the stored dtype."""


class Transform(Protocol):
    """What becomes of each tensor of a checkpoint after it is read: a copy of the checkpoint that is never written.

    The result may depend on nothing but the arguments, so that several processes and two runs make the same copy.
    """

    def __call__(self, tensor: Tensor, ref: TensorRef, rows: range | None = None) -> Tensor:
        """Return the copy's tensor, in the same shape and dtype; leave `tensor` as it is, because it is hashed later.

        Args:
            tensor: the logical tensor, decoded if it is stored quantised.
            ref: its reference.
            rows: the rows that `tensor` holds, if it is a part of an embedding or head; None for the whole tensor.
        """

    def describe(self) -> dict[str, Any]:
        """Return what the copy is, as JSON values; equal descriptions make equal copies."""


def load(reader: ReaderLike, ref: TensorRef) -> Tensor:
    """Read one logical tensor: contiguous, in the stored dtype, with the shape `ref.shape`."""
    return _cut(_entry(reader, ref), ref)


def load_rows(reader: Reader, ref: TensorRef, rows: range) -> Tensor:
    """Read some rows of an embedding or head, in the stored dtype; neither is ever stored cut or transposed."""
    assert (ref.rows, ref.span, ref.transpose) == (None, None, False), f"{ref.stored} is cut or transposed"
    return reader.read(ref.stored, ref.index, rows)


def load_all(
    reader: ReaderLike, refs: Iterable[TensorRef], transform: Transform | None = None
) -> dict[str, Tensor]:
    """Read logical tensors, by role, and transform them; an entry that several references share is read once."""
    entries: dict[tuple[object, ...], Tensor] = {}
    loaded: dict[str, Tensor] = {}
    for ref in refs:
        key = (ref.stored, ref.index, ref.span)
        if key not in entries:
            entries[key] = _entry(reader, ref)
        tensor = _cut(entries[key], ref)
        loaded[ref.role] = tensor if transform is None else transform(tensor, ref)
    return loaded


def entries(refs: Iterable[TensorRef]) -> list[EntryKey]:
    """Return the entries that `load_all` reads for these references, each once, in order."""
    wanted: dict[EntryKey, None] = {}
    for ref in refs:
        rows = [ref.index] if ref.span is None else range(*ref.span)
        wanted |= dict.fromkeys((ref.stored, row) for row in rows)
    return list(wanted)


def _entry(reader: ReaderLike, ref: TensorRef) -> Tensor:
    """Read the stored data of a reference, before transposing and cutting."""
    if ref.span is None:
        return reader.read(ref.stored, ref.index)
    return torch.stack([reader.read(ref.stored, row) for row in range(*ref.span)])


def _cut(stored: Tensor, ref: TensorRef) -> Tensor:
    tensor = stored.transpose(-1, -2) if ref.transpose else stored
    if ref.rows is not None:
        tensor = tensor[slice(*ref.rows)]
    assert tuple(tensor.shape) == ref.shape, f"{ref.stored} was checked against {ref.shape} when it was bound"
    return tensor.contiguous()
