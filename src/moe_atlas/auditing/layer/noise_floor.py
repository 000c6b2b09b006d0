"""The noise floor: an audit of the base against itself in another execution order or another dtype.

Arithmetic alone causes the differences of such an audit. They give every channel a floor, and every layer a band δ of
dispatch scores. A change of the routed set inside the band is no evidence of a rewrite.

Legend: W windows, S tokens per window, T tokens, D model width, P rows of one expert, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_atlas.channels import CHANNELS
from moe_atlas.geometry.pair import NoiseBand
from moe_atlas.models.spec import LayerSpec
from moe_atlas.replay.model import Replay
from moe_atlas.replay.primitives.linear import Weights
from moe_atlas.replay.router import Routing

MEASURED = tuple(channel.key for channel in CHANNELS if channel.kind == "drift")
PIECE = 37  # rows of an expert per product: an odd, small number changes the tiling of products


class ReorderedReplay(Replay):
    """The replay in another execution order: single windows in reverse, and expert rows in small pieces in reverse."""

    @staticmethod
    def padded_rows(rows: int) -> int:
        """Return `rows`: this replay pads nothing."""
        return rows

    def attention(self, layer: LayerSpec, w: Weights, state_WSD: Tensor) -> Tensor:
        """Return the residual in front of the block, computed window by window in reverse."""
        windows = state_WSD.flip(0).split(1)
        parts = [super(ReorderedReplay, self).attention(layer, w, window) for window in windows]
        return torch.cat(parts).flip(0)

    def expert(
        self, layer: LayerSpec, w_expert: Weights, g_TD: Tensor, tokens_P: Tensor, weights_P: Tensor
    ) -> Tensor:
        """Return raw outputs of one expert, computed piece by piece in reverse."""
        pieces = zip(tokens_P.flip(0).split(PIECE), weights_P.flip(0).split(PIECE), strict=True)
        parts = [super(ReorderedReplay, self).expert(layer, w_expert, g_TD, *piece) for piece in pieces]
        return torch.cat(parts).flip(0)


def score_changes(first: Routing, second: Routing) -> dict[str, float]:
    """Return max |Δa| and max |Δ group score| over the finite entries of two routings of the same tokens."""
    groups = (first.group_scores_TG, second.group_scores_TG)
    return {
        "delta": _largest(first.scores_TE, second.scores_TE),
        "group_delta": 0.0 if groups[0] is None or groups[1] is None else _largest(groups[0], groups[1]),
    }


def _largest(a: Tensor, b: Tensor) -> float:
    change = (a.double() - b.double()).abs()
    finite = change[torch.isfinite(change)]
    return float(finite.max()) if len(finite) else 0.0


def floor_facts(
    execution: str, layers: list[dict[str, Any]], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the receipt's `noise_floor` block: per layer δ, δ_g and the mean of every channel; the largest |ΔNLL|."""
    rows = []
    for facts in layers:
        prefix = f"layers.{facts['layer']}.pair"
        channels = {key: arrays.get(f"{prefix}.{key}") for key in MEASURED}
        row: dict[str, Any] = {"layer": facts["layer"], **facts["noise"]}
        row |= {key: None if value is None else float(np.nanmean(value)) for key, value in channels.items()}
        rows.append(row)
    increase = np.abs(arrays["output.nll_tuned"] - arrays["output.nll_base"])
    return {"execution": execution, "layers": rows, "largest_nll_change": float(increase.max())}


def bands(floor: dict[str, Any]) -> dict[int, NoiseBand]:
    """Return the noise band of every routed layer, by layer index."""
    return {row["layer"]: NoiseBand(row["delta"], row["group_delta"]) for row in floor["layers"]}
