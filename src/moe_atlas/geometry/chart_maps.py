"""Numerical rank of W1 and condition number of the overlap maps T_{e→e'} (Eq. 13), on request.

Legend: H rows of W1 (2h for gated experts), D model width, R numerical rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def overlap_map(w1_from_HD: Tensor, w1_to_HD: Tensor) -> dict[str, Any]:
    """Return the rank of the source's W1 and the condition number of T = W1' W1⁺ on the column space of W1.

    Returns:
        `rank` (numerical rank of the source's W1), `full_rank` (rank = D, the assumption of Theorem 1) and `condition`
        (largest over smallest non-zero singular value of T; null when the source has rank 0).
    """
    source_HD, target_HD = w1_from_HD.double(), w1_to_HD.double()
    u_HD, s_D, vt_DD = torch.linalg.svd(source_HD, full_matrices=False)
    tolerance = max(source_HD.shape) * torch.finfo(torch.float32).eps * float(s_D.max())
    rank = int((s_D > tolerance).sum())
    report: dict[str, Any] = {"rank": rank, "full_rank": rank == source_HD.shape[1], "condition": None}
    if rank:
        # In the orthonormal basis U, T restricted to the column space of W1 is W1' V S⁻¹.
        map_HR = (target_HD @ vt_DD[:rank].T) / s_D[:rank]
        singular_R = torch.linalg.svdvals(map_HR)
        positive_R = singular_R[singular_R > tolerance / float(s_D.max())]
        if len(positive_R):
            report["condition"] = float(positive_R.max() / positive_R.min())
    return report
