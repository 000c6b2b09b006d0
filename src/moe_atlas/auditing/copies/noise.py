"""Noisy copies of a checkpoint: Gaussian noise on one object of the model, relative to the size of each tensor."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_atlas.models.spec import TensorRef

OBJECTS: dict[str, frozenset[str] | None] = {
    "router": frozenset({"router", "selection_bias"}),
    "experts": frozenset({"routed_expert"}),
    "backbone": frozenset({"attention", "dense_mlp", "shared_expert"}),
    "gains": frozenset({"norm"}),
    "everything": None,
}
"""The objects that may get noise, each with the ledger classes of its tensors; None: every tensor."""
BY_ROW = ("embedding", "head")
BLOCK = (
    1 << 14
)  # elements at a time, in float64; torch sums so few in one thread, so that no bit depends on threads


@dataclass(frozen=True)
class NoisyCopy:
    """Gaussian noise on one object: a `Transform` that reads no data but the tensor itself.

    The standard deviation is `dose` times the root mean square (RMS) of the tensor's elements. The canonical name of
    the tensor seeds the noise, so that the copy is the same in every stored layout and in every process. A tensor gets
    the same noise at every dose, scaled. Each row of an embedding or head is a tensor of its own, because an audit
    reads these in parts.

    Attributes:
        object: a key of `OBJECTS`.
        dose: standard deviation of the noise as a share of the RMS; 0 gives equal values.
    """

    object: str
    dose: float

    def __call__(self, tensor: Tensor, ref: TensorRef, rows: range | None = None) -> Tensor:
        """Return the tensor with noise; a tensor of another object, or of integers, is returned as it is."""
        kinds = OBJECTS[self.object]
        if not tensor.is_floating_point() or (kinds is not None and ref.kind not in kinds):
            return tensor
        if ref.kind in BY_ROW and tensor.dim() == 2:
            ids = rows or range(len(tensor))
            named = zip(ids, tensor, strict=True)
            return torch.stack([noisy(row, self.dose, f"{ref.name}[{index}]") for index, row in named])
        return noisy(tensor, self.dose, ref.name)

    def describe(self) -> dict[str, Any]:
        """Return what the copy is, as JSON values."""
        return asdict(self)


def noisy(tensor: Tensor, dose: float, name: str) -> Tensor:
    """Add noise of `dose` times the tensor's RMS, seeded by a name; return the tensor's dtype and shape, contiguous.

    The sum is computed in float64 and rounded to the dtype of the tensor. NumPy draws the noise: its stream is the same
    in every process, and may change with another version of NumPy.
    """
    out = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    deviation = dose * root_mean_square(tensor)
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()))
    for block, target in zip(tensor.reshape(-1).split(BLOCK), out.view(-1).split(BLOCK), strict=True):
        noise = torch.from_numpy(generator.standard_normal(len(block)))
        target.copy_(block.double() + deviation * noise)
    return out


def root_mean_square(tensor: Tensor) -> float:
    """Return the root mean square of a tensor's elements, summed in float64; 0 without elements."""
    squares = sum(float(block.double().square().sum()) for block in tensor.reshape(-1).split(BLOCK))
    return math.sqrt(squares / max(1, tensor.numel()))
