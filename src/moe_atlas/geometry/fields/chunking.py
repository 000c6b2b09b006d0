"""Process rows in chunks that fit into the processor's cache, several chunks in parallel.

Torch divides matrix products among its own threads. The other operations of this package are so small that waking
those threads takes longer than the operation. So each chunk runs on one thread of a pool.

Legend: P and R rows, M tokens, D model width.
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
CHUNK = 1 << 19  # elements of a chunk on the CPU
GPU_CHUNK = 1 << 25  # elements of a chunk on a GPU
CPU = torch.device("cpu")


def row_slices(rows: int, width: int, elements: int) -> list[slice]:
    """Return consecutive slices of rows, each with at most `elements` elements; the slices depend on no machine."""
    step = max(1, elements // max(width, 1))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def map_chunks(work: Callable[[slice], T], rows: int, width: int, *, on: torch.device = CPU) -> list[T]:
    """Return the results of `work` for every chunk of rows, in order; chunks must write to disjoint memory.

    A GPU divides the work of a chunk itself and needs no small chunks, so its chunks are large and run in sequence.
    """
    if on != CPU:
        return [work(part) for part in row_slices(rows, width, GPU_CHUNK)]
    parts, threads = row_slices(rows, width, CHUNK), torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        return [work(part) for part in parts]

    def in_inference_mode(part: slice) -> T:
        with torch.inference_mode():  # each thread sets this mode for itself
            return work(part)

    return list(_workers(threads).map(in_inference_mode, parts))


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "geometry", torch.set_num_threads, (1,))


if hasattr(os, "register_at_fork"):  # a forked child inherits the pool without its threads
    os.register_at_fork(after_in_child=_workers.cache_clear)


def row_norms(v_PD: Tensor) -> Tensor:
    """Return the Euclidean norm of every row, float64 [P], summed in float32."""
    norm_P: Tensor = torch.linalg.vector_norm(v_PD, dim=-1, dtype=torch.float32)
    return norm_P.double()


def gather_rows(rows_RD: Tensor, place_MP: Tensor) -> Tensor:
    """Return the rows with these numbers, [M, P, D]; `index_select` copies whole rows, tensor indexing does not."""
    return rows_RD.index_select(0, place_MP.reshape(-1)).view(*place_MP.shape, rows_RD.shape[1])
