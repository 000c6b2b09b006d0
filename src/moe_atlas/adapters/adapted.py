"""A tensor of the base as an adapter changes it: read the base's entry, then change that entry alone.

Legend: O outputs, I inputs, R rank, V vocabulary, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from moe_atlas.checkpoint.quantised.encoding import Encoding

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from moe_atlas.checkpoint.source import Given

HELD = 4
"""Factors that stay in memory: A and B of both parameters of a layer's experts."""
Cut = tuple[int, int, int]
"""Rows (start, stop, step)."""


class Factors:
    """The factors that were read last; an expert's change is a part of a factor that all experts share."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    def read(self, given: Given, name: str) -> Tensor:
        """Return a whole factor, from memory or through `given`."""
        with self._lock:
            found = self._held.get(name)
        found = given(name, None, None) if found is None else found
        with self._lock:
            self._held[name] = found
            self._held.move_to_end(name)
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        return found


@dataclass(frozen=True)
class Update:
    """One change of a tensor, or of one entry of a stack.

    Attributes:
        a: stored name of the factor A.
        b: stored name of the factor B.
        scale: the factor of B·A.
        expert: index, number of experts, and whether B is packed by expert; None: the factors are those of one matrix.
        embedding: whether A is [r, V] and B is [D, r], so that the change is (B·A)ᵀ and its rows are tokens.
        turned: whether the change is (B·A)ᵀ.
        out: rows of the change that are meant; None means all.
        into: rows of the entry to which they are added; None means all.
        transpose: whether the entry is stored transposed.
        magnitude: stored name of the magnitudes of the rows (DoRA).
        first: whether the change is rounded before the sum.
    """

    a: str
    b: str
    scale: float
    expert: tuple[int, int, bool] | None = None
    embedding: bool = False
    turned: bool = False
    out: Cut | None = None
    into: Cut | None = None
    transpose: bool = False
    magnitude: str | None = None
    first: bool = False

    @property
    def by_rows(self) -> bool:
        """Whether rows of the entry can be changed without the others."""
        return not (self.turned or self.transpose or self.out or self.into)


@dataclass(frozen=True)
class Adapted:
    """A tensor that an adapter changes, as a logical tensor.

    Attributes:
        name: name of the base's tensor.
        shape: its shape.
        dtype: dtype of what `read` returns, as safetensors spells it.
        source: name of the tensor that is changed: the base's, or one of the adapter that replaces it.
        parts: stored names of what is read of the tensor that is changed, by role.
        encoding: the format of the tensor that is changed; None where it is stored plainly.
        updates: changes by entry of the leading dimension; under None those of the whole tensor.
        factors: the factors in memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    source: str
    parts: Mapping[str, str]
    encoding: Encoding | None
    updates: Mapping[int | None, tuple[Update, ...]]
    factors: Factors

    def read(self, given: Given, index: int | None, rows: range | None) -> Tensor:
        """Return the changed tensor, one entry of its leading dimension, or some rows of either.

        Args:
            given: reads a tensor as it is stored or decoded: name, entry, rows.
            index: see `Reader.read`.
            rows: see `Reader.read`.
        """
        import torch

        if len(self.shape) > 2 and index is None:
            entries = range(self.shape[0]) if rows is None else rows
            return torch.stack([self._matrix(given, entry, None) for entry in entries])
        if len(self.shape) <= 2 and index is not None:
            return self._matrix(given, None, range(index, index + 1))[0]
        return self._matrix(given, index, rows)

    def _matrix(self, given: Given, entry: int | None, rows: range | None) -> Tensor:
        updates = self.updates.get(entry, ())
        part = rows if all(update.by_rows for update in updates) else None
        weight = given(self.source, entry, part)
        for update in updates:
            weight = self._changed(given, weight, update, part)
        weight = weight.to(self._dtype)
        return weight if rows is None or part is not None else weight[rows.start : rows.stop].clone()

    def _changed(self, given: Given, weight: Tensor, update: Update, rows: range | None) -> Tensor:
        target = weight.mT if update.transpose else weight
        delta = self._delta(given, update, rows)
        if update.into is None:
            changed = self._combined(given, target, delta, update, rows)
            return (changed.mT if update.transpose else changed).contiguous()
        changed = weight.to(self._dtype, copy=True)  # the memory of `weight` may not be hashed yet
        part = (changed.mT if update.transpose else changed)[slice(*update.into)]
        part.copy_(self._combined(given, target[slice(*update.into)], delta, update, rows))
        return changed

    def _combined(
        self, given: Given, weight: Tensor, delta: Tensor, update: Update, rows: range | None
    ) -> Tensor:
        from moe_atlas.adapters.patch import add, rescale

        if update.magnitude is None:
            return add(weight, delta, self._dtype, first=update.first)
        magnitude_O = self.factors.read(given, update.magnitude).reshape(-1)
        if update.turned:
            return rescale(weight.mT, delta.mT, magnitude_O, self._dtype).mT
        part_O = magnitude_O if rows is None else magnitude_O[rows.start : rows.stop]
        return rescale(weight, delta, part_O, self._dtype)

    def _delta(self, given: Given, update: Update, rows: range | None) -> Tensor:
        """Return the change of an entry, or of some of its rows, float32."""
        from moe_atlas.adapters.patch import change, expert_factors

        a, b = self.factors.read(given, update.a), self.factors.read(given, update.b)
        if update.embedding:
            return change(a if rows is None else a[:, rows.start : rows.stop], b, update.scale).mT
        if update.expert is not None:
            expert, experts, by_expert = update.expert
            a, b = expert_factors(a, b, expert, experts, by_expert=by_expert)
        if update.turned:
            delta = change(a, b, update.scale).mT
            return delta if update.out is None else delta[slice(*update.out)]
        if rows is not None:
            b = b[rows.start : rows.stop]
        return change(a, b if update.out is None else b[slice(*update.out)], update.scale)

    @property
    def _dtype(self) -> torch.dtype:
        from moe_atlas.checkpoint.reader import torch_dtype

        found = torch_dtype(self.dtype)
        assert found is not None, f"{self.name} was read as {self.dtype} when the base was bound"
        return found
