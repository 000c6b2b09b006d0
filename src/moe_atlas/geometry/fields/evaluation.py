"""Which experts are evaluated on which token, and how their rows are grouped into one product per matrix.

An evaluation table holds, for each token, an expert index per slot (−1: the slot is empty). Rows are multiplied in
groups that do not depend on the other checkpoint or on the memory at hand, because a matrix product's last bit may
depend on how many rows it is given.

Legend: T tokens, E experts, K top-k, P slots per token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moe_atlas.statistics.generator import mix, stream_key

EMPTY = -1


def renumbered(ids: Tensor, numbers_E: Tensor) -> Tensor:
    """Expert indices under another numbering, empty ones left empty: e becomes `numbers_E[e]`."""
    numbers_E = numbers_E.to(ids.device)
    return torch.where(ids == EMPTY, EMPTY, numbers_E[ids.clamp_min(0)])


def distinct(table_TP: Tensor) -> Tensor:
    """The table with every expert in one slot of its token: those that name it again are left empty."""
    again_TP = (table_TP[:, :, None] == table_TP[:, None, :]).tril(-1).any(-1)
    return table_TP.masked_fill(again_TP, EMPTY)


def contains(table_TP: Tensor, ids_TK: Tensor) -> Tensor:
    """Bool [T, K]: which of `ids_TK` is already in the token's row of `table_TP`."""
    return (ids_TK[:, :, None] == table_TP[:, None, :]).any(-1)


def join(table_TP: Tensor, ids_TK: Tensor) -> Tensor:
    """Append slots for `ids_TK`, leaving a slot empty where the expert is in the table already."""
    return torch.cat([table_TP, ids_TK.masked_fill(contains(table_TP, ids_TK), EMPTY)], dim=1)


def all_others(table_TP: Tensor, experts: int) -> Tensor:
    """Append one slot for every expert, empty where the token has it already (`experts: all`)."""
    everyone_TE = torch.arange(experts, device=table_TP.device).expand(len(table_TP), experts)
    return join(table_TP, everyone_TE)


def specificity_partner(
    seed: int, windows_T: np.ndarray, positions_T: np.ndarray, layer: int, excluded_TP: Tensor, experts: int
) -> Tensor:
    """One expert drawn uniformly outside S ∪ {e_{k+1}}, int64 [T]; empty when there is none.

    The draw is a pure function of (seed, window, position, layer): the same on every machine and for both
    checkpoints, which differ only in what is excluded.
    """
    counter_T = (windows_T.astype(np.uint64) << np.uint64(32)) | positions_T.astype(np.uint64)
    bits_T = mix(np.uint64(stream_key(seed, layer)) + mix(counter_T))
    excluded_TP = torch.where(excluded_TP == EMPTY, experts, excluded_TP).sort(dim=1).values
    free_T = experts - (excluded_TP < experts).sum(1)
    high_T = torch.from_numpy((bits_T >> np.uint64(33)).astype(np.int64)).to(excluded_TP.device)
    partner_T = (high_T * free_T) >> 31  # Lemire's multiply-shift; the bias is below E/2^31
    for slot in range(excluded_TP.shape[1]):  # step over the excluded experts in ascending order
        partner_T = partner_T + (excluded_TP[:, slot] <= partner_T)
    return torch.where(free_T > 0, partner_T, EMPTY)


class RowGroup:
    """The rows of some slots of a table in the order of their experts: one stable sort, then a slice per expert.

    Attributes:
        count: how many rows; an empty slot has none.
        tokens_R, slots_R: token and slot of each row, int64, tokens rising for each expert.
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

    def part(self, expert: int) -> slice:
        """The rows of `expert`."""
        return slice(self._begin[expert], self._begin[expert + 1])

    def span(self, experts: range) -> slice:
        """The rows of consecutive experts."""
        return slice(self._begin[experts.start], self._begin[experts.stop])

    def places(self, first: int, empty: int) -> Tensor:
        """Where each slot's row is when the group's rows begin at `first`, [T, P]; `empty` where there is none."""
        places = torch.full((self._shape.numel(),), empty, device=self._order_R.device)
        places[self._order_R] = torch.arange(first, first + self.count, device=places.device)
        return places.view(self._shape)
