"""Which assumptions of the theorems hold at a layer (Theorem 1, section 2.1, Eq. 9). No gate uses these values.

Legend: T tokens, D model width, W windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_atlas.channels import CHANNELS
from moe_atlas.geometry.fields.chunking import map_chunks, row_norms
from moe_atlas.geometry.fields.undefined_values import mark_undefined
from moe_atlas.models.spec import LayerSpec, MoESpec
from moe_atlas.replay.primitives.norm import gain_float32


def effective_gain(layer: LayerSpec, weights: Mapping[str, Tensor]) -> Tensor | None:
    """Return the gain γ of the gate coordinate, float32 [D]; None without a norm in front of the block."""
    if not layer.pre_ffn_norm:
        return None
    weight_D = weights["pre_ffn_norm"]
    ones_D = torch.ones(weight_D.shape, dtype=torch.float32, device=weight_D.device)
    return gain_float32(ones_D, layer.norm, weight_D, None)


def gain_anisotropy(gain_D: Tensor | None) -> dict[str, Any] | float:
    """Return κ_Γ = max|γ| / min|γ|, or null with its reason."""
    if gain_D is None:
        return {"value": None, "reason": "no norm in front of the router"}
    size_D = gain_D.double().abs()
    if not bool(torch.isfinite(size_D).all()):
        return {"value": None, "reason": "the gain is not finite"}
    if float(size_D.min()) == 0.0:
        return {"value": None, "reason": "a gain of exactly 0: Γ is not invertible"}
    return float(size_D.max() / size_D.min())


def radial_to_tangent(x_TD: Tensor, layer: LayerSpec) -> Tensor:
    """Return ε / r_ε² of each token (Eq. 9), float64 [T]; for a LayerNorm, r_ε is that of the centred state."""

    def mean_square(p: slice) -> Tensor:
        part_TD = x_TD[p].float()
        if layer.norm.kind == "layer":
            part_TD = part_TD - part_TD.mean(-1, keepdim=True)
        return row_norms(part_TD).square() / x_TD.shape[1]

    mean_square_T = torch.cat(map_chunks(mean_square, *x_TD.shape, on=x_TD.device))
    return mark_undefined(layer.norm.eps / (mean_square_T + layer.norm.eps))


def radial_mean(ratio_W: np.ndarray | None) -> dict[str, Any] | float:
    """Return the mean of ε / r_ε² over all windows, or null with its reason."""
    if ratio_W is None:
        return {"value": None, "reason": "no norm in front of the router"}
    if not np.isfinite(ratio_W).all():
        return {"value": None, "reason": "a residual state is not finite"}
    return float(ratio_W.mean())


NO_TANGENT = (
    *(channel.key for channel in CHANNELS if channel.visible),
    "overlap",
    "overlap_specificity",
    "overlap_boundary_contrast",
    "smooth_overlap",
    "jump",
    "jump_idealised",
    "jump_relative",
    "jump_near_boundary",
    "field_norm",
    "perturbation_budget",
)
"""Quantities that need the tangent projection P_z."""


NO_COMPETITION = (
    "set_margin",
    "jump",
    "jump_idealised",
    "jump_relative",
    "jump_near_boundary",
    "overlap_boundary_contrast",
)


def undefined(moe: MoESpec) -> dict[str, str]:
    """Return the quantities that the architecture leaves undefined at this layer, each with its reason."""
    reasons: dict[str, str] = {}
    if not moe.pre_norm:
        raw = "the router reads the raw residual: there is no canonical state z"
        reasons |= dict.fromkeys(("coordinate_drift_z", "radial_to_tangent"), raw)
        reasons |= dict.fromkeys(NO_TANGENT, "no canonical state z, so P_z u is undefined")
    elif moe.post_norm:
        reasons |= dict.fromkeys(NO_TANGENT, "a norm follows the experts: P_z u is not the visible update")
    elif moe.joins_norm:
        joined = "the experts' output joins the normalised state: P_z u is not the visible update"
        reasons |= dict.fromkeys(NO_TANGENT, joined)
    if moe.router.top_k == 1:
        single = "one expert per token: no two experts are co-active"
        reasons |= dict.fromkeys(("overlap", "overlap_specificity", "overlap_boundary_contrast"), single)
    if moe.router.table is not None:
        looked_up = "routed by token id: the set is looked up, and no other expert competes for a place in it"
        reasons |= dict.fromkeys(NO_COMPETITION, looked_up)
    if moe.router.kept_groups >= moe.router.groups:
        reasons["group_margin"] = "no group is ever dropped"
    return reasons


def structural(moe: MoESpec, width: int) -> dict[str, Any]:
    """Return the assumptions that the architecture alone decides: norm, router and rank."""
    router = moe.router
    biased = router.linear_bias or router.selection_bias
    # A sum of two sigmoids is not homogeneous, so scaling a state may change which groups the router keeps.
    grouped_sums = router.kept_groups < router.groups and router.group_score == "top2_sum"
    return {
        "rms_norm": moe.pre_norm and moe.norm_kind.startswith("rms"),
        "bias_free_router": not biased,
        "ray_invariant_selection": not biased and not grouped_sums and moe.pre_norm,
        # The output of such an expert, and so its content drift, depends on its gate weight.
        "experts_weighted_on_input": moe.weight_on_input,
        "rank_possible": moe.w1_rows >= width,
        "w1_rows": moe.w1_rows,
    }
