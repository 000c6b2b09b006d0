"""Rows of embedding or head that one checkpoint of a pair alone has: new tokens, or what an export padded.

Legend: C rows of a part, D model width, R all such rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FAR_LONGER = 10.0  # times the longest row of the base
NAMED = 16
SIDES = ("base", "tuned")


class LoneRows:
    """The norms of such rows, taken in part by part.

    Args:
        side: whose they are: 0 the base's, 1 the tuned checkpoint's.
        first: the id of the first of them.
    """

    def __init__(self, side: int, first: int) -> None:
        self._side, self._first = side, first
        self._norms: list[NDArray[np.float64]] = []

    def add(self, part_CD: Tensor) -> None:
        """Take in the next rows."""
        self._norms.append(torch.linalg.vector_norm(part_CD, dim=1, dtype=torch.float64).numpy(force=True))

    def facts(self, specials: Sequence[Mapping[int, str]], longest: float) -> dict[str, Any]:
        """What the receipt says of them.

        Args:
            specials: of each checkpoint, names of ids that have a meaning of their own, by id.
            longest: norm of the longest row of the base that both checkpoints have.
        """
        norms_R, names = np.concatenate(self._norms), specials[self._side]
        ids = range(self._first, self._first + len(norms_R))
        by_length = (self._first + int(row) for row in np.argsort(-norms_R, kind="stable"))
        wanted = list(dict.fromkeys([*(i for i in ids if i in names), *by_length]))[:NAMED]
        return {
            "side": SIDES[self._side],
            "first": self._first,
            "rows": len(norms_R),
            "zero": int((norms_R == 0.0).sum()),
            "nonfinite": int((~np.isfinite(norms_R)).sum()),
            "far_longer": int((~(norms_R <= FAR_LONGER * longest)).sum()),
            "named": [
                {"id": i, "name": names.get(i), "norm": _finite(norms_R[i - self._first])}
                for i in sorted(wanted)
            ],
        }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
