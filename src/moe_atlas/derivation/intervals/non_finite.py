"""Windows in which a checkpoint computed NaN or an infinity, and the layer in which that happened first.

In window arrays NaN means that a quantity is undefined in the window. An infinity means that the audit computed the
quantity and that it is not finite. So an infinity of the tuned checkpoint, or a token counted as not finite, is a
finding, not missing evidence, unless the base is not finite in the same window.

Shape legend: W windows, Wb base-role windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.derivation.intervals.context import Context
from moe_atlas.window_arrays import LAYER_ARRAYS, NON_FINITE

Bools = NDArray[np.bool_]
OUTPUT = -1
"""Stands for a layer: all states are finite, only the output of the head is not."""
_OF = {"base": ("base",), "tuned": ("tuned", "pair")}


@dataclass(frozen=True)
class Broken:
    """The windows that are not finite.

    Attributes:
        base_W: whether the base is not finite in each window, bool [W].
        tuned_W: whether only the tuned checkpoint is not finite, bool [W].
        first_W: the first layer at which the tuned checkpoint is not finite, int64 [W]; `OUTPUT` if none.
        layers: the routed layers in the order in which a token passes them.
        counted: whether the audit counted tokens in every layer and at the output.
    """

    base_W: Bools
    tuned_W: Bools
    first_W: NDArray[np.int64]
    layers: tuple[int, ...]
    counted: bool


def broken_windows(context: Context, layers: list[int]) -> Broken:
    """Return the windows that are not finite, from counts of tokens and from infinite window values.

    Args:
        context: the settings and window data.
        layers: the routed layers in the order in which a token passes them.
    """
    windows = len(context.base_W)
    base_W, tuned_W = np.zeros(windows, dtype=bool), np.zeros(windows, dtype=bool)
    first_W = np.full(windows, OUTPUT, dtype=np.int64)
    for layer in layers:
        base_W |= _layer(context, layer, "base")
        if context.is_pair:
            found_W = _layer(context, layer, "tuned")
            first_W[found_W & ~tuned_W] = layer
            tuned_W |= found_W
    base_W |= _output(context, "base", ("nll_base",))
    if context.is_pair:
        tuned_W |= _output(context, "tuned", ("nll_tuned", "kl"))
    return Broken(base_W, tuned_W & ~base_W, first_W, tuple(layers), _counted(context, layers))


def _sides(context: Context) -> tuple[str, ...]:
    return ("base", "tuned") if context.is_pair else ("base",)


def _counted(context: Context, layers: list[int]) -> bool:
    wanted = [f"output.non_finite_{side}" for side in _sides(context)]
    wanted += [f"layers.{layer}.{side}.non_finite" for layer in layers for side in _sides(context)]
    return all(name in context.windows for name in wanted)


def _layer(context: Context, layer: int, side: str) -> Bools:
    """Return the windows in which one checkpoint has a counted token or an infinite value at one layer."""
    found_W = np.zeros(len(context.base_W), dtype=bool)
    for array in LAYER_ARRAYS.values():
        values = context.windows.get(array.at(layer)) if array.place in _OF[side] else None
        if values is None:
            continue
        if array.key == NON_FINITE:
            found_W |= np.asarray(values) > 0
        else:
            found_W[context.base_W] |= _infinite(values)
    return found_W


def _output(context: Context, side: str, keys: tuple[str, ...]) -> Bools:
    found_W = np.zeros(len(context.base_W), dtype=bool)
    for key in keys:
        values_W = context.array(f"output.{key}")
        found_W |= False if values_W is None else _infinite(values_W)
    counts_W = context.array(f"output.non_finite_{side}")
    return found_W if counts_W is None else found_W | (counts_W > 0)


def _infinite(values: NDArray[Any]) -> Bools:
    """Return whether each window has an infinite value, bool [Wb]; a window may have several values."""
    return np.asarray(np.isinf(values).reshape(len(values), -1).any(axis=1))
