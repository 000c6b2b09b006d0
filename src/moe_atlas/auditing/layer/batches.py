"""A fixed partition of the probe windows into batches: the same for every memory budget, so that bits never move.

Legend: W windows, S tokens per window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe_atlas.probes.windows import Window

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Batch:
    """Windows of equal length that go through a layer together.

    Attributes:
        first: index of the first window; the batch holds consecutive ones.
        tokens_WS: token ids, int64.
        measured: whether these are base-role windows, which the routed object is read on.
    """

    first: int
    tokens_WS: Tensor
    measured: bool

    @property
    def windows(self) -> range:
        """Indices of the windows."""
        return range(self.first, self.first + len(self.tokens_WS))


def partition(windows: Sequence[Window], measured: int, limit: int = BATCH_TOKENS) -> list[Batch]:
    """Consecutive windows of equal length, at most `limit` tokens a batch (one window at least).

    Args:
        windows: the probe's windows, base-role ones first.
        measured: how many of them are base-role.
        limit: tokens a batch may hold.
    """
    batches: list[Batch] = []
    begin = 0
    while begin < len(windows):
        length = len(windows[begin].tokens)
        end = begin + 1
        last = measured if begin < measured else len(windows)
        while end < last and len(windows[end].tokens) == length and (end + 1 - begin) * length <= limit:
            end += 1
        tokens_WS = torch.from_numpy(np.stack([window.tokens for window in windows[begin:end]]))
        batches.append(Batch(begin, tokens_WS.long(), begin < measured))
        begin = end
    return batches


def rounds(batches: Sequence[Batch], held_tokens: int) -> Iterator[list[int]]:
    """Numbers of the batches that pass a layer's experts together, so that each is read once for all of them.

    Args:
        batches: the partition.
        held_tokens: how many tokens may be at the experts together; one batch at least.
    """
    part: list[int] = []
    held = 0
    for number, batch in enumerate(batches):
        tokens = batch.tokens_WS.numel()
        if part and held + tokens > held_tokens:
            yield part
            part, held = [], 0
        part.append(number)
        held += tokens
    if part:
        yield part
