"""What this machine does in a second, from a second's trial at the model's own shapes.

Legend: P rows of one product, D model width, H hidden width, M measured tokens.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from moe_atlas.checkpoint.digest import PIECE_BYTES, OpenShard
from moe_atlas.checkpoint.index import Checkpoint
from moe_atlas.geometry.overlap import compatibility, field_norm
from moe_atlas.geometry.tangent import TangentMap, relative_change

SECONDS = 0.4  # of each trial of the processor
SAMPLE = 32 << 20  # bytes read of each checkpoint
TOKENS = 64  # whose rows are read in a trial


def products(width: int, hidden: int, rows: int, dtype: torch.dtype) -> float:
    """Operations a second of an expert's products, [P, D] by [D, H] and [P, H] by [H, D], in the compute dtype."""
    x_PD, x_PH = torch.randn(rows, width).to(dtype), torch.randn(rows, hidden).to(dtype)
    w_HD, w_DH = torch.randn(hidden, width).to(dtype), torch.randn(width, hidden).to(dtype)

    def work() -> None:
        torch.nn.functional.linear(x_PD, w_HD)
        torch.nn.functional.linear(x_PH, w_DH)

    return 4.0 * rows * width * hidden / best(work)


@torch.inference_mode()
def readings(width: int, slots: int, dtype: torch.dtype, *, pair: bool) -> float:
    """Measured tokens a second: of one layer, its fields compared with each other and, of a pair, with the other's."""
    rows_MPD = torch.randn(TOKENS, slots, width).to(dtype)
    tangent = TangentMap(torch.randn(TOKENS, width))
    tokens_P = torch.arange(TOKENS).repeat_interleave(slots)

    def work() -> None:
        for _ in range(1 + pair):
            v_MPD = tangent(rows_MPD)
            compatibility(v_MPD)
            field_norm(v_MPD, torch.ones(TOKENS, slots))
            field_norm(v_MPD, torch.ones(TOKENS, slots))
        if pair:
            v0_PD, v1_PD, native_PD = (tangent(rows_MPD.flatten(0, 1), tokens_P) for _ in range(3))
            relative_change(v0_PD, v1_PD)
            relative_change(v0_PD, native_PD)

    return TOKENS / best(work)


def reading(checkpoints: Sequence[Checkpoint]) -> float:
    """Bytes a second read and hashed, both checkpoints at once, as cold or warm as their first megabytes are now."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(len(checkpoints)) as pool:
        total = sum(pool.map(_read_some, checkpoints))
    return total / (time.perf_counter() - begin)


def _read_some(checkpoint: Checkpoint) -> int:
    """Read and hash the beginning of the largest shard; return how many bytes."""
    file = max(checkpoint.shards, key=lambda name: checkpoint.files[name].size)
    buffer, running, position = memoryview(bytearray(PIECE_BYTES)), hashlib.sha256(), 0
    with OpenShard(checkpoint, file) as shard:
        stop = min(SAMPLE, shard.size)
        while position < stop:
            piece = buffer[: min(PIECE_BYTES, stop - position)]
            shard.fill(piece, position)
            running.update(piece)
            position += len(piece)
    return position


def best(work: Callable[[], object]) -> float:
    """Seconds of `work`: the best of some repetitions."""
    work()
    least, start = float("inf"), time.perf_counter()
    while True:
        begin = time.perf_counter()
        work()
        end = time.perf_counter()
        least = min(least, end - begin)
        if end - start >= SECONDS:
            return least
