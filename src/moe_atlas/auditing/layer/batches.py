"""A fixed partition of the probe windows into batches; it does not depend on the memory budget, so bits never change.

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
class WindowBatch:
    """Consecutive windows of equal length that pass a layer at once.

    Attributes:
        first: index of the first window.
        tokens_WS: token ids, int64.
        measured: whether the windows have role base, so that the audit measures the routed object on them.
    """

    first: int
    tokens_WS: Tensor
    measured: bool

    @property
    def windows(self) -> range:
        """The indices of the windows."""
        return range(self.first, self.first + len(self.tokens_WS))


def partition(windows: Sequence[Window], measured: int, limit: int = BATCH_TOKENS) -> list[WindowBatch]:
    """Divide windows into batches of equal length with at most `limit` tokens, but at least one window, per batch.

    Args:
        windows: the probe's windows; windows of role base come first.
        measured: number of windows of role base.
        limit: most tokens in a batch.
    """
    batches: list[WindowBatch] = []
    begin = 0
    while begin < len(windows):
        length = len(windows[begin].tokens)
        end = begin + 1
        last = measured if begin < measured else len(windows)
        while end < last and len(windows[end].tokens) == length and (end + 1 - begin) * length <= limit:
            end += 1
        tokens_WS = torch.from_numpy(np.stack([window.tokens for window in windows[begin:end]]))
        batches.append(WindowBatch(begin, tokens_WS.long(), begin < measured))
        begin = end
    return batches


def layer_passes(batches: Sequence[WindowBatch], held_tokens: int) -> Iterator[list[int]]:
    """Yield the batch numbers of each pass over a layer; every pass reads each expert once.

    Args:
        batches: the partition.
        held_tokens: most tokens in one pass; a pass has at least one batch.
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
