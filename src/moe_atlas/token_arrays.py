"""The table of token arrays: the optional evidence of single tokens, and the form in which a token file holds it.

The audit fills these arrays, the verifier holds a token file against them, and the explanation reads them. No interval
and no verdict follows from them.

Legend: T tokens of all windows, P scored positions of all windows, M replaced members of routed sets; each in the order
of the windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NLL_BASE = "tokens.nll_base"
"""Loss of the base at every scored position, nats, float16 [P]."""
NLL_INCREASE = "tokens.nll_increase"
"""Loss of the tuned checkpoint minus that of the base, nats, float16 [P]; infinite where either is not finite."""
LARGEST = float(np.finfo(np.float16).max)
"""A larger loss or increase is stored as this number."""
WIDEST = 256
"""Most experts whose numbers fit into one byte."""


@dataclass(frozen=True)
class MoveNames:
    """Names of the arrays of one routed layer in the token file.

    Attributes:
        moved: replaced members of each token's routed set, [T].
        lost: the base's expert in each replaced place, by token and within it by the base's rank, [M].
        gained: the tuned checkpoint's expert in its place, in the base's numbering, [M].
    """

    moved: str
    lost: str
    gained: str


def move_names(layer: int) -> MoveNames:
    """Return the names of a layer's arrays."""
    return MoveNames(*(f"layers.{layer}.{key}" for key in ("moved", "lost", "gained")))


def expert_dtype(experts: int) -> np.dtype[Any]:
    """Return the dtype of expert numbers, and of numbers of replaced members, at a layer: uint8 or uint16."""
    return np.dtype(np.uint8 if experts <= WIDEST else np.uint16)


def stored_loss(loss_P: NDArray[np.float64]) -> NDArray[np.float16]:
    """Return losses or changes of loss as the file holds them; a value that is not finite becomes infinite."""
    finite_P = np.isfinite(loss_P)
    clipped_P = np.clip(np.where(finite_P, loss_P, 0.0), -LARGEST, LARGEST)
    return np.where(finite_P, clipped_P, np.inf).astype(np.float16)


def split(arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the window arrays and the token arrays of an audit."""
    tokens = {name: array for name, array in arrays.items() if _is_of_tokens(name)}
    return {name: array for name, array in arrays.items() if name not in tokens}, tokens


def _is_of_tokens(name: str) -> bool:
    return name in (NLL_BASE, NLL_INCREASE) or name.rpartition(".")[2] in ("moved", "lost", "gained")


def most_bytes(tokens: int, scored: int, routers: Sequence[tuple[int, int]]) -> int:
    """Return the bytes of the arrays of a pair in which every routed set is replaced.

    Args:
        tokens: tokens of all windows.
        scored: scored positions of all windows.
        routers: number of experts and top-k of each routed layer.
    """
    layers = (expert_dtype(experts).itemsize * (1 + 2 * k) for experts, k in routers)
    return 4 * scored + tokens * sum(layers)


def least_bytes(tokens: int, scored: int, experts: Sequence[int]) -> int:
    """Return the bytes of the arrays of a pair in which no routed set changes; arguments as of `most_bytes`."""
    return 4 * scored + tokens * sum(expert_dtype(count).itemsize for count in experts)
