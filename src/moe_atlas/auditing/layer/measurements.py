"""Measurements of one routed layer: values per token during the walk, arrays per window afterwards.

Legend: W windows, S tokens per window, M measured tokens per window, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_atlas.geometry.drift import replaced_members
from moe_atlas.geometry.fields.undefined_values import window_means, window_sums
from moe_atlas.geometry.occupancy import cells, window_counts, window_mean_probs
from moe_atlas.replay.router import Routing
from moe_atlas.token_arrays import expert_dtype, move_names
from moe_atlas.window_arrays import LAYER_ARRAYS, WindowArray

Arrays = dict[str, np.ndarray]
_DTYPES = {"float64": torch.float64, "int32": torch.int32}
PERCENTILES = {"p01": 0.01, "p10": 0.10, "p50": 0.50}


class LayerMeasurements:
    """Measurements of one layer, collected batch by batch in any order; the arrays follow the order of the windows.

    Attributes:
        layer: the model's layer index; names of window arrays start with ``layers.{layer}.``.
        facts: the measured part of the layer's object in the receipt.
        stride: quantities that need expert outputs are measured at every `stride`-th token of a window.
        keeps_tokens: whether the replaced members of every token's routed set are kept.
    """

    def __init__(self, layer: int, facts: dict[str, Any], stride: int, *, keeps_tokens: bool = False) -> None:
        self.layer, self.facts, self.stride, self.keeps_tokens = layer, facts, stride, keeps_tokens
        # By name, and within it by a batch's first window.
        self._tokens: dict[str, dict[int, Tensor]] = {}
        self._windows: dict[str, dict[int, Tensor]] = {}
        self._topk: dict[str, dict[int, Tensor]] = {}
        self._moves: dict[str, dict[int, Tensor]] = {}

    def add_tokens(self, prefix: str, values: dict[str, Tensor], windows: range) -> None:
        """Add values per token, float64 [W·S], of consecutive windows; drop quantities undefined at this layer."""
        undefined = self.facts.get("undefined", ())
        for key, value_T in values.items():
            array = LAYER_ARRAYS[f"{prefix}.{key}"]
            if array.quantity not in undefined:
                value_WS = value_T.reshape(len(windows), -1).cpu()
                self._tokens.setdefault(array.name, {})[windows.start] = value_WS

    def add_routing(self, name: str, routing: Routing, windows: range) -> None:
        """Add the occupancy of checkpoint `name`: counts, mean ρ, top-k sets, ties and undefined margins."""
        experts = routing.probs_TE.shape[1]
        counts_WE = window_counts(routing.topk_TK, len(windows), experts)
        rho_WE = window_mean_probs(routing.probs_TE, len(windows))
        self._windows.setdefault(f"{name}.counts", {})[windows.start] = counts_WE.cpu()
        self._windows.setdefault(f"{name}.rho", {})[windows.start] = rho_WE.cpu()
        self._topk.setdefault(name, {})[windows.start] = routing.topk_TK.cpu()
        self._count(name, "ties", int(routing.ties_T.sum()))
        self._count(name, "margin_undefined", int((routing.competitor_T < 0).sum()))

    def add_non_finite(self, name: str, broken_T: Tensor, windows: range) -> None:
        """Add the tokens, bool [W·S], on which checkpoint `name` is not finite; the windows may have any role."""
        counts_W = broken_T.view(len(windows), -1).sum(1)
        self._windows.setdefault(f"{name}.non_finite", {})[windows.start] = counts_W.cpu()

    def add_experts(self, sums_WE: NDArray[np.float64], counts_WE: NDArray[np.int32], windows: range) -> None:
        """Add the change of each expert on the tokens that use it, unless content drift is undefined."""
        undefined = self.facts.get("undefined", ())
        for key, values_WE in (("sum", sums_WE), ("count", counts_WE)):
            array = LAYER_ARRAYS[f"pair.expert_content.{key}"]
            if array.quantity not in undefined:
                parts = self._windows.setdefault(array.name, {})
                parts[windows.start] = torch.from_numpy(values_WE)

    def add_moves(self, base: Routing, tuned: Routing, windows: range) -> None:
        """Add the replaced members of every token's routed set; the windows may have any role.

        Args:
            base: routing of the base at its own states.
            tuned: routing of the tuned checkpoint at its own states, in the base's numbering.
            windows: the windows of both.
        """
        dtype = getattr(torch, expert_dtype(base.probs_TE.shape[1]).name)
        names = move_names(self.layer)
        found = replaced_members(base.topk_TK, tuned.topk_TK)
        for name, values in zip((names.moved, names.lost, names.gained), found, strict=True):
            self._moves.setdefault(name, {})[windows.start] = values.to(dtype).cpu()

    def add_noise(self, changes: Mapping[str, float]) -> None:
        """Keep the largest change of a dispatch score and of a group score between two executions."""
        noise = self.facts.setdefault("noise", {})
        noise |= {key: max(value, noise.get(key, 0.0)) for key, value in changes.items()}

    def merge(self, other: LayerMeasurements) -> None:
        """Add the measurements that another process made of the same layer on its batches."""
        for mine, theirs in (
            (self._tokens, other._tokens),
            (self._windows, other._windows),
            (self._topk, other._topk),
            (self._moves, other._moves),
        ):
            for name, parts in theirs.items():
                mine.setdefault(name, {}).update(parts)
        for name in other._topk:
            for key in ("ties", "margin_undefined"):
                self._count(name, key, other.facts[name][key])
        if "noise" in other.facts:
            self.add_noise(other.facts["noise"])

    def _count(self, name: str, key: str, count: int) -> None:
        self.facts[name][key] = self.facts[name].get(key, 0) + count

    def arrays(self) -> Arrays:
        """Return window and token arrays by name, and complete `facts` with quantiles and cells."""
        values_WS = {name: _joined(parts) for name, parts in self._tokens.items()}
        out = values_WS | {name: _joined(parts) for name, parts in self._windows.items()}
        for name in self._topk:
            out |= self._tails(name, values_WS)
            self._add_point_facts(name, values_WS)
        arrays = ((LAYER_ARRAYS[name], values) for name, values in out.items())
        moves = {name: _joined(parts).numpy() for name, parts in self._moves.items()}
        return {array.at(self.layer): _by_window(array, values) for array, values in arrays} | moves

    def _tails(self, name: str, values_WS: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return sums over the tokens in the lowest and highest margin quartile and the lowest margin decile."""
        margin_WS = values_WS.get(f"{name}.set_margin")
        if margin_WS is None or not torch.isfinite(margin_WS[:, :: self.stride]).any():
            return {}
        margin_WM = margin_WS[:, :: self.stride]
        defined_WM = torch.isfinite(margin_WM)
        cut = {q: pooled_quantile(margin_WM, q) for q in (0.10, 0.25, 0.75)}
        tails = {
            "overlap_low": ("overlap", defined_WM & (margin_WM <= cut[0.25])),
            "overlap_high": ("overlap", defined_WM & (margin_WM >= cut[0.75])),
            "jump_low": ("jump", defined_WM & (margin_WM <= cut[0.10])),
        }
        out: dict[str, Tensor] = {}
        for key, (quantity, chosen_WM) in tails.items():
            if f"{name}.{quantity}" not in values_WS:
                continue
            value_WM = values_WS[f"{name}.{quantity}"]
            chosen_WM = chosen_WM & ~torch.isnan(value_WM)
            out[f"{name}.{key}.sum"] = torch.where(chosen_WM, value_WM, 0.0).sum(1)
            out[f"{name}.{key}.count"] = chosen_WM.sum(1)
        return out

    def _add_point_facts(self, name: str, values_WS: dict[str, Tensor]) -> None:
        facts, undefined = self.facts[name], self.facts.get("undefined", {})
        for key in ("set_margin", "group_margin"):
            margin_WS = values_WS.get(f"{name}.{key}")
            for percentile, q in PERCENTILES.items():
                facts[f"{key}_{percentile}"] = _quantile_fact(margin_WS, q, key, undefined.get(key))
        topk_TK = _joined(self._topk[name]).numpy()
        facts["cells"], facts["cell_entropy"] = cells(topk_TK)


def _by_window(array: WindowArray, values: Tensor) -> np.ndarray:
    """Return one row per window, in the dtype of the table, from values per token [W, S] or per window."""
    if array.tokens is not None:
        values = {"mean": window_means, "sum": window_sums}[array.tokens](values)
    return np.ascontiguousarray(values.to(_DTYPES[array.dtype]).numpy())


def _joined(parts: Mapping[int, Tensor]) -> Tensor:
    return torch.cat([parts[first] for first in sorted(parts)])


def pooled_quantile(value_WS: Tensor, q: float) -> float:
    """Return a quantile over all finite tokens of the layer, with linear interpolation."""
    values = value_WS[torch.isfinite(value_WS)].numpy()
    return float(np.quantile(values, q))


def _quantile_fact(margin_WS: Tensor | None, q: float, key: str, why: str | None) -> float | dict[str, Any]:
    if margin_WS is None:
        return {"value": None, "reason": why or "no group is ever dropped"}
    if not torch.isfinite(margin_WS).any():
        return {"value": None, "reason": f"{key} is undefined or not finite on every token"}
    return pooled_quantile(margin_WS, q)
