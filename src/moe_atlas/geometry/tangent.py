"""The directional visible field (Eq. 10): what of an expert's output survives the next normalisation.

Legend: T tokens, P experts per token, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.geometry.pieces import length
from moe_atlas.replay.norm import Canonical

KAPPA_EPS = 1e-12  # ε_κ of Eq. 20
RATIO_EPS = 1e-12  # ε of the content drift and of Eq. 28


class TangentMap:
    """P_z = I − z zᵀ/d at one canonical state per token (Eq. 10).

    A LayerNorm discards the mean as well, so there P also removes the direction of ones. Where the router reads
    the raw residual there is no z and the map is the identity; `defined` says so.
    """

    def __init__(self, z_TD: Tensor | Canonical | None, *, removes_mean: bool = False) -> None:
        self.z_TD = z_TD
        self.removes_mean = removes_mean

    def __call__(self, u_TXD: Tensor, tokens_T: Tensor | None = None) -> Tensor:
        """Tangent-visible part of `u`, float32, for the tokens given (all of them when omitted).

        Args:
            u_TXD: raw expert outputs [T, D] or [T, P, D].
            tokens_T: int64 indices of the tokens the rows belong to.
        """
        u_TXD = u_TXD.float()
        if self.z_TD is None:
            return u_TXD
        if tokens_T is None:
            tokens_T = torch.arange(len(u_TXD), device=u_TXD.device)
        z_TD = self.z_TD[tokens_T]
        z_TXD = z_TD if u_TXD.dim() == 2 else z_TD[:, None, :]
        radial_TX1 = (u_TXD * z_TXD).sum(-1, keepdim=True) / z_TD.shape[-1]
        v_TXD = torch.addcmul(u_TXD, radial_TX1, z_TXD, value=-1)
        return v_TXD - v_TXD.mean(-1, keepdim=True) if self.removes_mean else v_TXD


def relative_change(v0_PD: Tensor, v1_PD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """‖v¹−v⁰‖/(‖v¹‖+‖v⁰‖+ε) with its parts: (ratio, ‖v⁰‖, ‖v¹‖, ‖v¹−v⁰‖), each float64 [P] (content drift, Eq. 28)."""
    norm0_P, norm1_P, change_P = length(v0_PD), length(v1_PD), length(v1_PD - v0_PD)
    return change_P / (norm0_P + norm1_P + RATIO_EPS), norm0_P, norm1_P, change_P
