"""Expert identity, modulo symmetry orbits: is expert i of θ1 still expert i of θ0?

A sketch represents an expert: a fixed strided sample of the elements of its matrices. Unless an adversary chose the
weights, distances between sketches rank like distances between experts. The audit confirms whatever sketches suggest
(a relabelling, a clone) on the whole tensors.

Legend: E experts, N sketch elements, D model width, R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_atlas.weights.values import PIECE

SKETCH = 4096  # elements sampled from each matrix of an expert
INIT_DISPERSION = (
    1.5  # a matrix looks initialised if its norms disperse at most this many times as much as iid entries
)
KEPT_DIRECTION = (
    0.5  # least cosine to the base's expert at which a tuned expert counts as trained, not replaced
)


def sketch(tensors: Sequence[Tensor]) -> Tensor:
    """Return a strided sample of the elements of an expert's matrices, float32 [N]."""
    return torch.cat([torch.zeros(0), *(_sample(tensor.reshape(-1)) for tensor in tensors)])


def _sample(flat: Tensor) -> Tensor:
    count = min(SKETCH, len(flat))
    index = torch.div(torch.arange(count) * len(flat), count, rounding_mode="floor")
    return flat[index.to(flat.device)].float()


def looks_initialised(matrices: Sequence[Tensor], row_squares: Sequence[NDArray[np.float64]]) -> bool:
    """Return whether matrices look untrained: row and column norms disperse no more than those of iid entries.

    For n iid normal entries, the coefficient of variation of a norm is 1/√(2n). Training increases it.

    Args:
        matrices: the two-dimensional tensors of an expert.
        row_squares: for each matrix, the sums of squares of its rows.
    """
    # The rows suffice to recognise nearly every trained matrix.
    return all(
        _disperses_as_initialised(np.sqrt(squares_R), matrix.shape[1])
        for matrix, squares_R in zip(matrices, row_squares, strict=True)
    ) and all(_disperses_as_initialised(_norms_of_columns(matrix), matrix.shape[0]) for matrix in matrices)


def _disperses_as_initialised(norms: NDArray[np.float64], entries: int) -> bool:
    with np.errstate(invalid="ignore"):  # a zero matrix gives NaN, which compares false
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
    """Return squared Euclidean distances of base and tuned rows, float64 [E, E]; a non-finite row gives NaN or inf."""
    base_EN, tuned_EN = base_EN.double(), tuned_EN.double()
    cross_EE = base_EN @ tuned_EN.T
    square0_E1, square1_1E = base_EN.square().sum(1)[:, None], tuned_EN.square().sum(1)[None, :]
    return (square0_E1 + square1_1E - 2 * cross_EE).clamp_min(0.0)


def nearest(base_EN: Tensor, tuned_EN: Tensor) -> Tensor:
    """Return the nearest tuned row of every base row, int64 [E]; the same index wins a tie."""
    distance_EE = torch.nan_to_num(distances(base_EN, tuned_EN), nan=torch.inf)
    same_E = (base_EN == tuned_EN).all(1)
    distance_EE[same_E, same_E.nonzero().squeeze(1)] = 0.0
    best_E = distance_EE.argmin(1)
    own_E = distance_EE.diagonal()
    return torch.where(own_E <= distance_EE.min(1).values, torch.arange(len(base_EN)), best_E)


@dataclass(frozen=True)
class RouterRows:
    """The router rows and biases of all experts, which a consistent relabelling moves along with the experts.

    Attributes:
        rows_ED: router rows, float32.
        biases: bias vectors [E] of the router, float32.
        groups: number of expert groups if the router can drop a group; None otherwise.
    """

    rows_ED: Tensor
    biases: tuple[Tensor, ...]
    groups: int | None

    def nearer_after(self, other: RouterRows, match_E: Tensor) -> bool:
        """Return whether matching brings the rows or a bias of `other` nearer, and moves none of them away."""
        pairs = [(self.rows_ED, other.rows_ED), *zip(self.biases, other.biases, strict=True)]
        return all(_square(a - b[match_E]) <= _square(a - b) for a, b in pairs) and any(
            _square(a - b[match_E]) < _square(a - b) for a, b in pairs
        )

    def maps_groups(self, match_E: Tensor) -> bool:
        """Return whether the matching maps groups onto groups; True if the router never drops a group."""
        if self.groups is None:
            return True
        grouped = (match_E // (len(match_E) // self.groups)).reshape(self.groups, -1)
        return bool((grouped == grouped[:, :1]).all())


def _square(difference: Tensor) -> float:
    return float(difference.double().square().sum())


def may_be_relabelled(base: RouterRows, tuned: RouterRows) -> bool:
    """Return whether some base router row is nearest to a tuned row of another index, as a relabelling requires."""
    match_E = nearest(base.rows_ED, tuned.rows_ED)
    return not torch.equal(match_E, torch.arange(len(match_E)))


def relabelling(base: RouterRows, tuned: RouterRows, base_EN: Tensor, tuned_EN: Tensor) -> Tensor | None:
    """Return the consistent relabelling, int64 [E] (tuned index of each base expert), or None if there is none."""
    match_E = nearest(base_EN, tuned_EN)
    identity_E = torch.arange(len(match_E))
    is_bijection = torch.equal(match_E.sort().values, identity_E)
    if not is_bijection or torch.equal(match_E, identity_E):
        return None
    if not base.nearer_after(tuned, match_E) or not base.maps_groups(match_E):
        return None
    return match_E


def repeated(rows_EN: Tensor) -> list[list[int]]:
    """Return groups of experts with equal sketches, in ascending order: the candidates for clones."""
    groups: dict[bytes, list[int]] = {}
    for expert, row_N in enumerate(rows_EN):
        groups.setdefault((row_N + 0.0).numpy().tobytes(), []).append(expert)  # −0 becomes 0
    return [group for group in groups.values() if len(group) > 1]


@dataclass(frozen=True)
class ExpertTraits:
    """Traits of all experts of one layer of one checkpoint, by the checkpoint's own numbering.

    Attributes:
        sketches_EN: sketches, float32.
        clones: confirmed groups of experts that hold the same values.
        initialised: experts that look untrained.
        zeroed: experts with a matrix that is zero throughout.
    """

    sketches_EN: Tensor
    clones: list[list[int]]
    initialised: list[int]
    zeroed: list[int]


def layer_identity(
    layer: int, base: ExpertTraits, tuned: ExpertTraits, match_E: Tensor | None
) -> dict[str, Any]:
    """Return the receipt's account of one layer: assignment, clones, init-like experts and breaches.

    Args:
        layer: the model's layer index.
        base: traits of the base's experts.
        tuned: traits of the tuned checkpoint's experts.
        match_E: the consistent relabelling; None if there is none.
    """
    best_E = nearest(base.sketches_EN, tuned.sketches_EN)
    expected_E = torch.arange(len(best_E)) if match_E is None else match_E
    moved = (best_E != expected_E).nonzero().squeeze(1).tolist()
    found = [*_moved_breaches(best_E, moved), *_trait_breaches(base, tuned, expected_E)]
    breaches = [{"layer": layer, "kind": kind, "detail": detail} for kind, detail in found]
    return {
        "layer": layer,
        "assignment": "relabelled" if match_E is not None else "same-index" if not moved else "moved",
        "match": None if match_E is None else match_E.tolist(),
        "nearest_is_same_index": int((best_E == torch.arange(len(best_E))).sum()),
        "experts": len(best_E),
        "clones": {"base": base.clones, "tuned": tuned.clones},
        "init_like": {"base": base.initialised, "tuned": tuned.initialised},
        "breaches": breaches,
    }


def _moved_breaches(best_E: Tensor, moved: list[int]) -> Iterator[tuple[str, str]]:
    """Yield (kind, detail) of the breach by experts whose nearest tuned expert is not the expected one."""
    if moved:
        pairs = ", ".join(f"{e}→{int(best_E[e])}" for e in moved[:8]) + (" …" if len(moved) > 8 else "")
        kind = "experts-moved-without-router" if _bijection(best_E) else "expert-identity-lost"
        yield kind, f"base expert → nearest tuned expert: {pairs}"


def _trait_breaches(base: ExpertTraits, tuned: ExpertTraits, expected_E: Tensor) -> Iterator[tuple[str, str]]:
    """Yield (kind, detail) of the breaches by new clones, new init-like experts and new zeroed experts."""
    for group in tuned.clones:
        if group not in base.clones:
            yield "cloned-experts", _clone_detail(group)
    initialised = _replaced_by_init(base, tuned, expected_E)
    if initialised:
        yield "init-like-experts", f"experts {initialised} look as initialised, in the base they do not"
    known = [int(expected_E[e]) for e in base.zeroed]
    zeroed = [e for e in tuned.zeroed if e not in known]
    if zeroed:
        detail = f"experts {zeroed} have a matrix that is zero throughout, in the base they do not"
        yield "zeroed-experts", detail


def _replaced_by_init(base: ExpertTraits, tuned: ExpertTraits, expected_E: Tensor) -> list[int]:
    """Return tuned experts that look untrained, do not resemble their base expert, and whose base expert looks trained.

    A short training leaves norms near those of iid entries, so a light tune can make an expert look untrained. Such an
    expert keeps the direction of the base's expert. A fresh expert has a cosine near 0.
    """
    origin_E = expected_E.argsort()
    cosine_E = torch.cosine_similarity(base.sketches_EN[origin_E].double(), tuned.sketches_EN.double(), dim=1)
    return [
        e
        for e in tuned.initialised
        if int(origin_E[e]) not in base.initialised and cosine_E[e] < KEPT_DIRECTION
    ]


def _bijection(match_E: Tensor) -> bool:
    return len(match_E.unique()) == len(match_E)


def _clone_detail(group: list[int]) -> str:
    return f"experts {group} hold the same values in the tuned checkpoint, in the base they do not"
