"""Geometry a few rows at a time: pieces that stay in the cache, several of them at once.

Products are divided among torch's own threads; everything else here is so little work per operation that waking
those threads takes longer than the work. So whole pieces are divided instead, one thread each.

Legend: P rows, D model width.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
PIECE = 1 << 19  # elements of a piece
LARGE = 1 << 25  # elements of a piece on a GPU
CPU = torch.device("cpu")


def pieces(rows: int, width: int, elements: int) -> list[slice]:
    """Consecutive slices of rows of `width` elements, of so many elements at most, the same whatever the machine."""
    step = max(1, elements // max(width, 1))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def each(work: Callable[[slice], T], rows: int, width: int, *, on: torch.device = CPU) -> list[T]:
    """`work` of every piece, in order; pieces must not touch what another one writes.

    A GPU divides a piece itself and has no cache that it should stay in: there they are large, one after the other.
    """
    if on != CPU:
        return [work(part) for part in pieces(rows, width, LARGE)]
    parts, threads = pieces(rows, width, PIECE), torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        return [work(part) for part in parts]

    def quietly(part: slice) -> T:
        with torch.inference_mode():  # is a matter of the thread
            return work(part)

    return list(_workers(threads).map(quietly, parts))


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "geometry", torch.set_num_threads, (1,))


if hasattr(os, "register_at_fork"):  # a child has the pool but none of its threads
    os.register_at_fork(after_in_child=_workers.cache_clear)


def length(v_PD: Tensor) -> Tensor:
    """Euclidean norm of every row, float64 [P], added up in float32."""
    norm_P: Tensor = torch.linalg.vector_norm(v_PD, dim=-1, dtype=torch.float32)
    return norm_P.double()


def chosen(rows_RD: Tensor, place_MP: Tensor) -> Tensor:
    """Rows by their numbers, [M, P, D]: whole rows are moved, which indexing with a tensor does not do."""
    return rows_RD.index_select(0, place_MP.reshape(-1)).view(*place_MP.shape, rows_RD.shape[1])
