"""How a value per token says that it is undefined, or that it went wrong.

NaN means *undefined here* (left out of the mean, counted where the definition asks for it); infinity means
*computed and not finite* (never passes a gate). Keeping the two apart is what lets a broken checkpoint fail
instead of looking like an undefined one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def settle(values_T: Tensor, defined_T: Tensor | None = None) -> Tensor:
    """Float64 values with NaN exactly where undefined and +inf where computed but not finite.

    Args:
        values_T: raw values of any floating dtype.
        defined_T: bool, where the quantity is defined; everywhere when omitted.
    """
    values_T = values_T.double()
    values_T = torch.where(torch.isfinite(values_T), values_T, torch.inf)
    if defined_T is None:
        return values_T
    return torch.where(defined_T, values_T, torch.nan)


def window_means(values_WS: Tensor) -> Tensor:
    """Mean over the defined tokens of each window, float64 [W]; NaN for a window without any."""
    return values_WS.nanmean(dim=1)


def window_sums(values_WS: Tensor) -> Tensor:
    """Sum over the tokens of each window, float64 [W]."""
    return values_WS.sum(dim=1)
