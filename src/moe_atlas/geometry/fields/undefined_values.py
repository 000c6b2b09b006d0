"""Marks for undefined and for non-finite values per token.

NaN means *undefined at this token*: a mean leaves the value out. Infinity means *computed and not finite*: the value
never passes a gate. The two marks differ, so a broken checkpoint fails instead of looking undefined.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mark_undefined(values_T: Tensor, defined_T: Tensor | None = None) -> Tensor:
    """Return float64 values with NaN exactly where undefined and +inf where computed but not finite.

    Args:
        values_T: raw values of any floating-point dtype.
        defined_T: bool, where the quantity is defined; everywhere by default.
    """
    values_T = values_T.double()
    values_T = torch.where(torch.isfinite(values_T), values_T, torch.inf)
    if defined_T is None:
        return values_T
    return torch.where(defined_T, values_T, torch.nan)


def window_means(values_WS: Tensor) -> Tensor:
    """Return the mean over the defined tokens of each window, float64 [W]; NaN for a window without defined tokens."""
    return values_WS.nanmean(dim=1)


def window_sums(values_WS: Tensor) -> Tensor:
    """Return the sum over the tokens of each window, float64 [W]."""
    return values_WS.sum(dim=1)
