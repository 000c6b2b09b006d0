"""What an adapter makes of a matrix of its base, as pure functions that round where PEFT rounds.

Legend: O outputs, I inputs, R rank, E experts, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def change(a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """Return s·B·A, float32 [O, I]; PEFT casts stored factors to float32 first (`Linear.get_delta_weight`)."""
    return b_OR.float() @ a_RI.float() * scale


def expert_factors(
    a_ERI: Tensor, b_OER: Tensor, expert: int, experts: int, *, by_expert: bool
) -> tuple[Tensor, Tensor]:
    """Return A [R, I] and B [O, R] of one expert (`ParamWrapper.get_delta_weight`).

    Args:
        a_ERI: the factor A of all experts, [E·R, I].
        b_OER: the factor B of all experts, [O, R·E].
        expert: index of the expert.
        experts: number of experts.
        by_expert: whether the expert varies slowest along the columns of B; otherwise it varies fastest.
    """
    a_RI = a_ERI.reshape(experts, -1, a_ERI.shape[-1])[expert]
    if by_expert:
        return a_RI, b_OER.reshape(len(b_OER), experts, -1)[:, expert]
    return a_RI, b_OER.reshape(len(b_OER), -1, experts)[:, :, expert]


def add(weight: Tensor, delta: Tensor, dtype: torch.dtype, *, first: bool) -> Tensor:
    """Return weight + delta in `dtype`, the sum rounded once.

    Args:
        weight: the base's weight, any floating dtype.
        delta: the change, float32, of the same shape.
        dtype: dtype of the result.
        first: whether the change is rounded to `dtype` before the sum, as PEFT does for parameters and embeddings.
    """
    wide = _wide(weight)
    return (wide + (delta.to(dtype).to(wide.dtype) if first else delta)).to(dtype)


def rescale(weight_OI: Tensor, delta_OI: Tensor, magnitude_O: Tensor, dtype: torch.dtype) -> Tensor:
    """Return m / ‖W + ΔW‖ · (W + ΔW) in `dtype`, the norm of each row (DoRA, `DoraLinearVariant.merge_unsafe`)."""
    sum_OI = _wide(weight_OI) + delta_OI
    norm_O: Tensor = torch.linalg.norm(sum_OI, dim=1)
    return ((magnitude_O.float() / norm_O).view(-1, 1) * sum_OI).to(dtype)


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
