"""The directional visible field (Eq. 10): the part of an expert's output that survives the next normalisation.

Legend: T tokens, P experts per token, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.geometry.fields.chunking import row_norms
from moe_atlas.replay.primitives.norm import Canonical

KAPPA_EPS = 1e-12  # ε_κ of Eq. 20
RATIO_EPS = 1e-12  # ε of the content drift and of Eq. 28


class TangentMap:
    """P_z = I − z zᵀ/d at one canonical state per token (Eq. 10).

    A LayerNorm also discards the mean, so its P also removes the direction of ones. If the router reads the raw
    residual, there is no z and the map is the identity.

    Args:
        z_TD: canonical states, float32; None for the identity.
        removes_mean: whether the map also removes the direction of ones.
    """

    def __init__(self, z_TD: Tensor | Canonical | None, *, removes_mean: bool = False) -> None:
        self.z_TD = z_TD
        self.removes_mean = removes_mean

    def __call__(self, u_TXD: Tensor, tokens_T: Tensor | None = None) -> Tensor:
        """Return the tangent-visible part of `u`, float32.

        Args:
            u_TXD: raw expert outputs, [T, D] or [T, P, D].
            tokens_T: the token of each row, int64; all tokens in order by default.
        """
        return self.at(torch.arange(len(u_TXD), device=u_TXD.device) if tokens_T is None else tokens_T)(u_TXD)

    def at(self, tokens_P: Tensor) -> Tangent:
        """Return the map of some tokens, for use on several outputs of these tokens."""
        if self.z_TD is None:
            return Tangent(None, None, removes_mean=self.removes_mean)
        if isinstance(self.z_TD, Canonical):
            return Tangent(*self.z_TD.parts(tokens_P), removes_mean=self.removes_mean)
        return Tangent(self.z_TD.index_select(0, tokens_P), None, removes_mean=self.removes_mean)


class Tangent:
    """P_z of some tokens.

    Args:
        x_PD: z divided by `scale_P`, float32; None for the identity.
        scale_P: factor of each row, float32; None: 1.
        removes_mean: whether the map also removes the direction of ones.
    """

    def __init__(self, x_PD: Tensor | None, scale_P: Tensor | None, *, removes_mean: bool) -> None:
        self._x_PD, self._removes_mean = x_PD, removes_mean
        if x_PD is not None:
            ones_P = x_PD.new_ones(len(x_PD))
            self._factor_P = (ones_P if scale_P is None else scale_P.square()) / x_PD.shape[-1]

    def __call__(self, u_PXD: Tensor) -> Tensor:
        """Return the tangent-visible part of [P, D] or [P, X, D], float32."""
        u_PXD = u_PXD.float()
        if self._x_PD is None:
            return u_PXD
        shape = (len(self._x_PD), *(1 for _ in u_PXD.shape[1:]))
        x_PXD = self._x_PD.view(*shape[:-1], -1)
        radial_PX1 = torch.linalg.vecdot(u_PXD, x_PXD)[..., None] * self._factor_P.view(shape)
        v_PXD = torch.addcmul(u_PXD, radial_PX1, x_PXD, value=-1)
        return v_PXD - v_PXD.mean(-1, keepdim=True) if self._removes_mean else v_PXD


def relative_change(v0_PD: Tensor, v1_PD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ‖v¹−v⁰‖/(‖v¹‖+‖v⁰‖+ε) of content drift and Eq. 28, then ‖v⁰‖, ‖v¹‖ and ‖v¹−v⁰‖, each float64 [P]."""
    norm0_P, norm1_P, change_P = row_norms(v0_PD), row_norms(v1_PD), row_norms(v1_PD - v0_PD)
    return change_P / (norm0_P + norm1_P + RATIO_EPS), norm0_P, norm1_P, change_P
