"""Linear maps, addressed by the role of their weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Tensors of a layer by role."""


def linear(w: Weights, role: str, x: Tensor) -> Tensor:
    """Multiply `x` by the weight of `role` and add its bias if there is one, in the dtype of `x`."""
    bias = w.get(f"{role}.bias")
    return F.linear(x, w[role].to(x.dtype), None if bias is None else bias.to(x.dtype))
