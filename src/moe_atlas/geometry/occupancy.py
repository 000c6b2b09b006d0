"""How the probe set uses the routed object (Eq. 16–17): counts per window, and the cells visited.

Legend: W windows, S tokens per window, T = W·S tokens, E experts, K top-k.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def window_counts(topk_TK: Tensor, windows: int, experts: int) -> Tensor:
    """Count the tokens of each window that are routed to each expert, int64 [W, E]."""
    counts_WE = torch.zeros(windows, experts, dtype=torch.int64, device=topk_TK.device)
    per_window_WX = topk_TK.reshape(windows, -1)
    return counts_WE.scatter_add_(1, per_window_WX, torch.ones_like(per_window_WX))


def window_mean_probs(probs_TE: Tensor, windows: int) -> Tensor:
    """Return the mean gate probability ρ of each window and expert (Eq. 23), float64 [W, E]."""
    return probs_TE.double().reshape(windows, -1, probs_TE.shape[1]).mean(1)


def cells(topk_TK: np.ndarray) -> tuple[int, float]:
    """Return the number of distinct top-k sets and the entropy of their frequencies in nats (Eq. 16)."""
    _, counts = np.unique(np.sort(topk_TK, axis=1), axis=0, return_counts=True)
    share = counts / counts.sum()
    return len(counts), float(-(share * np.log(share)).sum())
