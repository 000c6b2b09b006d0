"""Which experts are evaluated on which token, and how their rows are grouped into one product per matrix.

An evaluation table holds, for each token, an expert index per slot (−1: the slot is empty). The last bit of a matrix
product may depend on its number of rows. So the groups of rows depend neither on the other checkpoint nor on the
available memory.

Legend: T tokens, E experts, K top-k, P slots per token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moe_atlas.statistics.generator import mix, stream_key

EMPTY = -1


def renumbered(ids: Tensor, numbers_E: Tensor) -> Tensor:
    """Return expert indices in another numbering: e becomes `numbers_E[e]`, and empty slots stay empty."""
    numbers_E = numbers_E.to(ids.device)
    return torch.where(ids == EMPTY, EMPTY, numbers_E[ids.clamp_min(0)])


def distinct(table_TP: Tensor) -> Tensor:
    """Return the table with each expert once per token; later slots that repeat an expert become empty."""
    again_TP = (table_TP[:, :, None] == table_TP[:, None, :]).tril(-1).any(-1)
    return table_TP.masked_fill(again_TP, EMPTY)


def contains(table_TP: Tensor, ids_TK: Tensor) -> Tensor:
    """Return which of `ids_TK` the token's row of `table_TP` already holds, bool [T, K]."""
    return (ids_TK[:, :, None] == table_TP[:, None, :]).any(-1)


def append_missing(table_TP: Tensor, ids_TK: Tensor) -> Tensor:
    """Append slots for `ids_TK`; a slot stays empty if the token's row already holds the expert."""
    return torch.cat([table_TP, ids_TK.masked_fill(contains(table_TP, ids_TK), EMPTY)], dim=1)


def append_all(table_TP: Tensor, experts: int) -> Tensor:
    """Append one slot for every expert (`experts: all`); a slot stays empty if the row already holds the expert."""
    all_TE = torch.arange(experts, device=table_TP.device).expand(len(table_TP), experts)
    return append_missing(table_TP, all_TE)


def specificity_partner(
    seed: int, windows_T: np.ndarray, positions_T: np.ndarray, layer: int, excluded_TP: Tensor, experts: int
) -> Tensor:
    """Draw one expert per token uniformly outside S ∪ {e_{k+1}}, int64 [T]; −1 if no such expert exists.

    The draw is a pure function of (seed, window, position, layer), so it is the same on every machine. It is also the
    same for both checkpoints, except for the excluded experts.
    """
    counter_T = (windows_T.astype(np.uint64) << np.uint64(32)) | positions_T.astype(np.uint64)
    bits_T = mix(np.uint64(stream_key(seed, layer)) + mix(counter_T))
    excluded_TP = torch.where(excluded_TP == EMPTY, experts, excluded_TP).sort(dim=1).values
    free_T = experts - (excluded_TP < experts).sum(1)
    high_T = torch.from_numpy((bits_T >> np.uint64(33)).astype(np.int64)).to(excluded_TP.device)
    partner_T = (high_T * free_T) >> 31  # Lemire's multiply-shift; the bias is below E/2^31
    for slot in range(excluded_TP.shape[1]):  # skip the excluded experts in ascending order
        partner_T = partner_T + (excluded_TP[:, slot] <= partner_T)
    return torch.where(free_T > 0, partner_T, EMPTY)


class RowGroup:
    """The rows of some slots of a table, sorted by expert, so that each expert's rows form one slice.

    Attributes:
        count: number of rows; an empty slot has no row.
        tokens_R, slots_R: token and slot of each row, int64; tokens ascend within each expert.
    """

    def __init__(self, table_TP: Tensor, slots: slice, experts: int) -> None:
        part_TP = table_TP[:, slots]
        self._shape = part_TP.shape
        width, flat = max(self._shape[1], 1), part_TP.reshape(-1)
        order = torch.argsort(flat, stable=True)
        edges = torch.searchsorted(flat[order], torch.arange(experts + 1, device=flat.device)).tolist()
        self._order_R = order[edges[0] :]  # empty slots come first
        self._begin = [edge - edges[0] for edge in edges]
        self.count = len(self._order_R)
        self.tokens_R = self._order_R // width
        self.slots_R = self._order_R % width + (slots.start or 0)

    def slice_of(self, expert: int) -> slice:
        """Return the rows of `expert`."""
        return slice(self._begin[expert], self._begin[expert + 1])

    def slice_of_range(self, experts: range) -> slice:
        """Return the rows of consecutive experts."""
        return slice(self._begin[experts.start], self._begin[experts.stop])

    def places(self, first: int, empty: int) -> Tensor:
        """Return each slot's row number when the group's rows begin at `first`, [T, P]; `empty` for an empty slot."""
        places = torch.full((self._shape.numel(),), empty, device=self._order_R.device)
        places[self._order_R] = torch.arange(first, first + self.count, device=places.device)
        return places.view(self._shape)
