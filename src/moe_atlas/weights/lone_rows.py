"""Rows of embedding or head that only one checkpoint of a pair has: new tokens, or padding of an export.

Legend: C rows of one part, D model width, R all such rows.
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
NAMED = 16  # rows that the receipt names
SIDES = ("base", "tuned")


class LoneRows:
    """The norms of the rows that only one checkpoint has, collected part by part.

    Args:
        side: the checkpoint that has them: 0 for the base, 1 for the tuned checkpoint.
        first: id of the first row.
    """

    def __init__(self, side: int, first: int) -> None:
        self._side, self._first = side, first
        self._norms: list[NDArray[np.float64]] = []

    def add(self, part_CD: Tensor) -> None:
        """Add the next rows."""
        self._norms.append(torch.linalg.vector_norm(part_CD, dim=1, dtype=torch.float64).numpy(force=True))

    def facts(self, specials: Sequence[Mapping[int, str]], longest: float) -> dict[str, Any]:
        """Return the receipt's facts about the rows.

        Args:
            specials: of each checkpoint, names of special token ids, by id.
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
