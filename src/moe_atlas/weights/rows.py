"""Changes of embedding and head row by row, which also cover tokens that no probe window contains.

The comparison keeps three sums of squares per row. For rows that changed so much that they may be misplaced rows of the
base, it also keeps a sample of elements.

Legend: V vocabulary, C rows of one part of the vocabulary, R sampled rows, N sampled elements of a row, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_atlas.weights.comparison import TensorComparison
from moe_atlas.weights.lone_rows import FAR_LONGER, NAMED, LoneRows

Norms = NDArray[np.float64]

# Limits on ‖w1−w0‖ / (‖w0‖ + ‖w1‖). A row that the probe reads may change up to LIMIT, which noise of three quarters of
# the row's norm reaches, or a row that became twice as long. A row that the probe does not read may change up to
# UNSEEN_LIMIT, or up to FACTOR times the median change of the rows that the probe reads.
LIMIT = 1 / 3
UNSEEN_LIMIT, FACTOR = 0.1, 3.0
SAMPLED, KEPT = 64, 8192  # elements sampled per row; most rows with a sample
ALIKE = 0.9  # least cosine at which a row counts as another row of the base


class RowChanges:
    """The row changes of the embedding or the head of a pair, collected part by part.

    Args:
        comparison: comparison of the same tensor; the caller adds each part to it first.
        seen_V: which ids the probe windows contain, bool [V].
    """

    def __init__(self, comparison: TensorComparison, seen_V: NDArray[np.bool_]) -> None:
        self._comparison, self._seen_V = comparison, seen_V
        self._lone: LoneRows | None = None
        self._ids: list[int] = []
        self._samples: list[Tensor] = []

    def add(self, rows: range, base_CD: Tensor, tuned_CD: Tensor | None) -> None:
        """Sample the rows of this part that may have been replaced, [2, N] each."""
        if tuned_CD is None:
            return
        moved = np.flatnonzero(self._moved(rows) > UNSEEN_LIMIT)[: KEPT - len(self._ids)]
        if len(moved):
            part = torch.from_numpy(moved)
            self._ids += (moved + rows.start).tolist()
            self._samples.append(torch.stack([sampled(base_CD[part]), sampled(tuned_CD[part])], dim=1))

    def add_lone(self, side: int, rows: range, part_CD: Tensor) -> None:
        """Add rows that only checkpoint `side` has: 0 for the base, 1 for the tuned checkpoint."""
        self._lone = self._lone or LoneRows(side, rows.start)
        self._lone.add(part_CD)

    def facts(self, *specials: Mapping[int, str]) -> dict[str, Any] | None:
        """Return the receipt's facts about the rows; None without a counterpart.

        Args:
            *specials: of each checkpoint, names of special token ids, by id.
        """
        if self._comparison.lone:
            return None
        special = specials[0]
        base_V, tuned_V, changes_V = (np.sqrt(self._comparison.row_squares(number)) for number in range(3))
        moved_V, seen_V = relative_moves(base_V, tuned_V, changes_V), self._seen_V
        limit_V = np.where(seen_V, LIMIT, unseen_limit(moved_V[seen_V]))
        outlying_V = ~(moved_V <= limit_V)
        longer_V = ~(tuned_V <= FAR_LONGER * base_V.max()) & outlying_V
        source = self._sources(outlying_V)
        worst = np.argsort(-moved_V, kind="stable")[:NAMED]
        wanted = [*(int(i) for i in worst if outlying_V[i]), *sorted(i for i in special if i < len(base_V))]
        return {
            "rows": len(base_V),
            "seen": int(seen_V.sum()),
            "changed": _counts(moved_V != 0.0, seen_V),
            "median_change": {"seen": _median(moved_V[seen_V]), "unseen": _median(moved_V[~seen_V])},
            "largest_change": {"seen": _largest(moved_V[seen_V]), "unseen": _largest(moved_V[~seen_V])},
            "outlying": _counts(outlying_V, seen_V),
            "far_longer": int(longer_V.sum()),
            "permuted": len(source),
            "named": [
                {
                    "id": i,
                    "name": special.get(i),
                    "seen": bool(seen_V[i]),
                    "outlying": bool(outlying_V[i]),
                    "change": _finite(moved_V[i]),
                    "norm": {"base": _finite(base_V[i]), "tuned": _finite(tuned_V[i])},
                    "was": source.get(i),
                }
                for i in dict.fromkeys(wanted)
            ],
            **({"extra": self._lone.facts(specials, base_V.max())} if self._lone else {}),
        }

    def _moved(self, rows: range) -> Norms:
        squares = [self._comparison.row_squares(number, rows) for number in range(3)]
        return relative_moves(*map(np.sqrt, squares))

    def _sources(self, outlying_V: NDArray[np.bool_]) -> dict[int, int]:
        """Return the base row that each outlying row equals, if that base row is itself among the outlying rows.

        A copy of an unchanged row is no permutation: new tokens often start as such copies.
        """
        kept = [place for place, number in enumerate(self._ids) if outlying_V[number]]
        if len(kept) < 2:
            return {}
        ids = [self._ids[place] for place in kept]
        pairs_R2N = torch.nn.functional.normalize(
            torch.cat(self._samples)[kept].nan_to_num(0.0, 0.0, 0.0), dim=-1
        )
        found: dict[int, int] = {}
        for begin in range(0, len(ids), 512):
            part_R2N = pairs_R2N[begin : begin + 512]
            best = (part_R2N[:, 1] @ pairs_R2N[:, 0].T).max(dim=1)
            for row, (cosine, place) in enumerate(
                zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ):
                if cosine >= ALIKE and place != begin + row:
                    found[ids[begin + row]] = ids[place]
        return found


def sampled(rows_RD: Tensor) -> Tensor:
    """Return evenly spaced elements of each row, float32 [R, N], scaled so that their squares do not overflow."""
    width = rows_RD.shape[1]
    index_N = torch.arange(min(SAMPLED, width)) * width // min(SAMPLED, width)
    found_RN = rows_RD[:, index_N].float()
    return found_RN / found_RN.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def relative_moves(base_V: Norms, tuned_V: Norms, changes_V: Norms) -> Norms:
    """Return ‖w1−w0‖ / (‖w0‖ + ‖w1‖), the formula of content drift: 0 for no change, infinite if not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        moved_V = np.where(changes_V == 0.0, 0.0, changes_V / (base_V + tuned_V))
    return np.where(np.isfinite(moved_V), moved_V, np.inf)


def unseen_limit(moved_seen: Norms) -> float:
    """Return the limit on the change of a row that no probe window reads."""
    usual = float(np.median(moved_seen)) if len(moved_seen) else 0.0
    return min(LIMIT, max(UNSEEN_LIMIT, FACTOR * usual))


def seen_ids(batches: Sequence[Tensor], vocabulary: int) -> NDArray[np.bool_]:
    """Return which ids the batches of tokens contain, bool [V]."""
    seen_V = np.zeros(vocabulary, dtype=bool)
    for tokens_WS in batches:
        seen_V[tokens_WS.reshape(-1).numpy()] = True
    return seen_V


def _counts(chosen_V: NDArray[np.bool_], seen_V: NDArray[np.bool_]) -> dict[str, int]:
    return {"seen": int((chosen_V & seen_V).sum()), "unseen": int((chosen_V & ~seen_V).sum())}


def _median(moved: Norms) -> float | None:
    return _finite(float(np.median(moved))) if len(moved) else None


def _largest(moved: Norms) -> float | None:
    return _finite(float(moved.max())) if len(moved) else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
