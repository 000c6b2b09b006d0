"""Expert identity, modulo symmetry orbits: is θ1's expert i still θ0's expert i?

Experts are compared by a sketch, a fixed strided sample of the elements of each of their matrices: distances
between sketches rank the same as distances between experts for anything but an adversary, and whatever a sketch
suggests (a relabelling, a clone) is confirmed on the whole tensors before it is named.

Legend: E experts, N sketch elements, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_atlas.weights.values import PIECE

SKETCH = 4096  # elements sampled from each matrix of an expert
INIT_DISPERSION = (
    1.5  # row norms dispersing less than this multiple of what iid entries would: as initialised
)
KEPT_DIRECTION = 0.5  # cosine to the base's expert from which on a tuned expert was trained, not replaced


def sketch(tensors: Sequence[Tensor]) -> Tensor:
    """Strided sample of the elements of an expert's matrices, float32 [N]."""
    return torch.cat([torch.zeros(0), *(_sample(tensor.reshape(-1)) for tensor in tensors)])


def _sample(flat: Tensor) -> Tensor:
    count = min(SKETCH, len(flat))
    index = torch.div(torch.arange(count) * len(flat), count, rounding_mode="floor")
    return flat[index.to(flat.device)].float()


def looks_initialised(matrices: Sequence[Tensor], squares_of_rows: Sequence[NDArray[np.float64]]) -> bool:
    """Whether an expert's matrices look untrained: row and column norms disperse no more than iid entries would.

    For n iid normal entries the coefficient of variation of a norm is 1/√(2n); training widens it.

    Args:
        matrices: of two dimensions each.
        squares_of_rows: for each of them the sums of the squares of its rows.
    """
    # The rows alone tell nearly every trained matrix.
    return all(
        _disperses_as_initialised(np.sqrt(squares_R), matrix.shape[1])
        for matrix, squares_R in zip(matrices, squares_of_rows, strict=True)
    ) and all(_disperses_as_initialised(_norms_of_columns(matrix), matrix.shape[0]) for matrix in matrices)


def _disperses_as_initialised(norms: NDArray[np.float64], entries: int) -> bool:
    with np.errstate(invalid="ignore"):  # what is zero throughout does not
        return bool(norms.std() / norms.mean() <= INIT_DISPERSION / math.sqrt(2 * entries))


def _norms_of_columns(matrix: Tensor) -> NDArray[np.float64]:
    rows, columns = matrix.shape
    step = min(rows, max(1, PIECE // columns))
    values_RC, squares_C = torch.empty(step, columns), np.zeros(columns)
    for part_RC in matrix.split(step):
        values = values_RC[: len(part_RC)].copy_(part_RC).numpy()
        with np.errstate(over="ignore"):
            squares_C += np.add.reduce(np.square(values, out=values), axis=0)
    return np.sqrt(squares_C)


def distances(base_EN: Tensor, tuned_EN: Tensor) -> Tensor:
    """Squared Euclidean distance between every base and tuned row, float64 [E, E]; not finite where a row is not."""
    base_EN, tuned_EN = base_EN.double(), tuned_EN.double()
    cross_EE = base_EN @ tuned_EN.T
    square0_E1, square1_1E = base_EN.square().sum(1)[:, None], tuned_EN.square().sum(1)[None, :]
    return (square0_E1 + square1_1E - 2 * cross_EE).clamp_min(0.0)


def nearest(base_EN: Tensor, tuned_EN: Tensor) -> Tensor:
    """For every base row the nearest tuned row, int64 [E]; the same index wins a tie."""
    distance_EE = torch.nan_to_num(distances(base_EN, tuned_EN), nan=torch.inf)
    same_E = (base_EN == tuned_EN).all(1)
    distance_EE[same_E, same_E.nonzero().squeeze(1)] = 0.0
    best_E = distance_EE.argmin(1)
    own_E = distance_EE.diagonal()
    return torch.where(own_E <= distance_EE.min(1).values, torch.arange(len(base_EN)), best_E)


@dataclass(frozen=True)
class RouterRows:
    """What must follow an expert when it is relabelled: its router row and its biases, stacked as columns."""

    rows_ED: Tensor
    biases: tuple[Tensor, ...]
    groups: int | None  # number of groups when any can be dropped

    def nearer_after(self, other: RouterRows, match_E: Tensor) -> bool:
        """Whether rows and every bias of `other` are nearer to this checkpoint's once matched."""
        pairs = [(self.rows_ED, other.rows_ED), *zip(self.biases, other.biases, strict=True)]
        return all(_square(a - b[match_E]) <= _square(a - b) for a, b in pairs) and any(
            _square(a - b[match_E]) < _square(a - b) for a, b in pairs
        )

    def maps_groups(self, match_E: Tensor) -> bool:
        """Whether the matching maps groups onto groups (vacuous where none is ever dropped)."""
        if self.groups is None:
            return True
        grouped = (match_E // (len(match_E) // self.groups)).reshape(self.groups, -1)
        return bool((grouped == grouped[:, :1]).all())


def _square(difference: Tensor) -> float:
    return float(difference.double().square().sum())


def may_be_relabelled(base: RouterRows, tuned: RouterRows) -> bool:
    """Whether any router row is nearest to another one's: only then can a relabelling bring rows nearer."""
    match_E = nearest(base.rows_ED, tuned.rows_ED)
    return not torch.equal(match_E, torch.arange(len(match_E)))


def relabelling(base: RouterRows, tuned: RouterRows, base_EN: Tensor, tuned_EN: Tensor) -> Tensor | None:
    """The consistent relabelling as `match[e]` = tuned index of base expert e, or None when there is none."""
    match_E = nearest(base_EN, tuned_EN)
    identity_E = torch.arange(len(match_E))
    is_bijection = torch.equal(match_E.sort().values, identity_E)
    if not is_bijection or torch.equal(match_E, identity_E):
        return None
    if not base.nearer_after(tuned, match_E) or not base.maps_groups(match_E):
        return None
    return match_E


def repeated(rows_EN: Tensor) -> list[list[int]]:
    """Groups of experts with equal sketches, ascending: candidates for clones."""
    groups: dict[bytes, list[int]] = {}
    for expert, row_N in enumerate(rows_EN):
        groups.setdefault((row_N + 0.0).numpy().tobytes(), []).append(expert)  # −0 becomes 0
    return [group for group in groups.values() if len(group) > 1]


def layer_identity(
    layer: int,
    base_EN: Tensor,
    tuned_EN: Tensor,
    match_E: Tensor | None,
    clones: tuple[list[list[int]], list[list[int]]],
    initialised: tuple[list[int], list[int]],
    zeroed: tuple[list[int], list[int]],
) -> dict[str, Any]:
    """The receipt's account of one layer: assignment, clones, init-like and zeroed experts, breaches.

    Args:
        layer: the model's own layer index.
        base_EN: sketches of the base's experts.
        tuned_EN: sketches of the tuned checkpoint's experts.
        match_E: the consistent relabelling, when there is one.
        clones: confirmed groups of equal experts in (base, tuned).
        initialised: experts that look untrained in (base, tuned).
        zeroed: experts with a matrix that is zero throughout in (base, tuned).
    """
    best_E = nearest(base_EN, tuned_EN)
    expected_E = torch.arange(len(best_E)) if match_E is None else match_E
    moved = (best_E != expected_E).nonzero().squeeze(1).tolist()
    new_clones = [group for group in clones[1] if group not in clones[0]]
    new_initialised = _replaced_by_init(base_EN, tuned_EN, expected_E, initialised)
    breaches = []
    if moved:
        pairs = ", ".join(f"{e}→{int(best_E[e])}" for e in moved[:8]) + (" …" if len(moved) > 8 else "")
        kind = "experts-moved-without-router" if _bijection(best_E) else "expert-identity-lost"
        breaches.append(
            {"layer": layer, "kind": kind, "detail": f"base expert → nearest tuned expert: {pairs}"}
        )
    breaches += [
        {"layer": layer, "kind": "cloned-experts", "detail": _clone_detail(group)} for group in new_clones
    ]
    if new_initialised:
        detail = f"experts {new_initialised} look as initialised, in the base they do not"
        breaches.append({"layer": layer, "kind": "init-like-experts", "detail": detail})
    known = [int(expected_E[e]) for e in zeroed[0]]
    new_zeroed = [e for e in zeroed[1] if e not in known]
    if new_zeroed:
        detail = f"experts {new_zeroed} have a matrix that is zero throughout, in the base they do not"
        breaches.append({"layer": layer, "kind": "zeroed-experts", "detail": detail})
    return {
        "layer": layer,
        "assignment": "relabelled" if match_E is not None else "same-index" if not moved else "moved",
        "match": None if match_E is None else match_E.tolist(),
        "nearest_is_same_index": int((best_E == torch.arange(len(best_E))).sum()),
        "experts": len(best_E),
        "clones": {"base": clones[0], "tuned": clones[1]},
        "init_like": {"base": initialised[0], "tuned": initialised[1]},
        "breaches": breaches,
    }


def _replaced_by_init(
    base_EN: Tensor, tuned_EN: Tensor, expected_E: Tensor, initialised: tuple[list[int], list[int]]
) -> list[int]:
    """Tuned experts that look untrained where their base expert does not, and have nothing of it left.

    A short training leaves norms near what iid entries give, so a light tune can carry an expert across the
    line; it keeps the base's direction. A fresh one has a cosine near 0.
    """
    origin_E = expected_E.argsort()
    cosine_E = torch.cosine_similarity(base_EN[origin_E].double(), tuned_EN.double(), dim=1)
    return [
        e for e in initialised[1] if int(origin_E[e]) not in initialised[0] and cosine_E[e] < KEPT_DIRECTION
    ]


def _bijection(match_E: Tensor) -> bool:
    return len(match_E.unique()) == len(match_E)


def _clone_detail(group: list[int]) -> str:
    return f"experts {group} hold the same values in the tuned checkpoint, in the base they do not"
