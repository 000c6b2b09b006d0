"""Rates of this machine per second, from short trials at the model's shapes.

Legend: P rows of one product, D model width, H hidden width, M measured tokens.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import torch

from moe_atlas.auditing.cost.flops import matrix_elements
from moe_atlas.auditing.layer.batches import BATCH_TOKENS
from moe_atlas.checkpoint.digest import beginning
from moe_atlas.checkpoint.files import PIECE_BYTES
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.geometry.fields.tangent import TangentMap, relative_change
from moe_atlas.geometry.overlap import compatibility, field_norm
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.spec import MoESpec
from moe_atlas.replay.loss import PART, POSITIONS, OnlineSoftmax
from moe_atlas.replay.primitives.feed_forward import feed_forward
from moe_atlas.weights.comparison import TensorComparison

SECONDS = 0.4  # duration of each processor trial
SAMPLE = 32 << 20  # bytes to read of each checkpoint
TOKENS = 64  # tokens per measurement trial
EXPERTS, EXPERT_BYTES = 8, 128 << 20  # experts per trial and their bytes, so that no expert stays in a cache


def product_rate(width: int, hidden: int, rows: int, dtype: torch.dtype) -> float:
    """Measure operations per second of an expert's products, [P, D] by [D, H] and [P, H] by [H, D]."""
    x_PD, x_PH = torch.randn(rows, width).to(dtype), torch.randn(rows, hidden).to(dtype)
    w_HD, w_DH = torch.randn(hidden, width).to(dtype), torch.randn(width, hidden).to(dtype)

    def work() -> None:
        torch.nn.functional.linear(x_PD, w_HD)
        torch.nn.functional.linear(x_PH, w_DH)

    return 4.0 * rows * width * hidden / median_seconds(work)


@torch.inference_mode()
def expert_rate(moe: MoESpec, width: int, rows: int, dtype: torch.dtype) -> float:
    """Measure operations per second of routed experts as the audit evaluates them: gathered rows, uncached weights."""
    shapes = {ref.role: ref.shape for ref in expert_refs(moe, 0)}
    size = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    weights = [
        {role: torch.randn(shape, dtype=dtype) for role, shape in shapes.items()}
        for _ in range(max(1, min(EXPERTS, EXPERT_BYTES // max(size, 1))))
    ]
    g_TD = torch.randn(BATCH_TOKENS, width).to(dtype)
    tokens_P = torch.randint(BATCH_TOKENS, (rows,)).sort().values

    def work() -> None:
        for w_expert in weights:
            feed_forward(moe.experts, w_expert, g_TD.index_select(0, tokens_P))

    return 2.0 * rows * matrix_elements(expert_refs(moe, 0)) * len(weights) / median_seconds(work)


@torch.inference_mode()
def measurement_rate(width: int, slots: int, dtype: torch.dtype, *, pair: bool) -> float:
    """Measure tokens per second for comparing fields of one layer, within a checkpoint and, if `pair`, in a pair."""
    rows_MPD = torch.randn(TOKENS, slots, width).to(dtype)
    tangent = TangentMap(torch.randn(TOKENS, width))
    tokens_M = torch.arange(TOKENS)
    delta_MD = torch.zeros(TOKENS, width, dtype=torch.float64)

    def compare(u_MD: torch.Tensor) -> None:
        visible = tangent.at(tokens_M)
        v0_MD, v1_MD, native_MD = (visible(u_MD) for _ in range(3))
        relative_change(v0_MD, v1_MD)
        relative_change(v0_MD, native_MD)
        delta_MD.index_add_(0, tokens_M, (v1_MD * 0.5 - v0_MD * 0.5).double())

    def work() -> None:
        for _ in range(1 + pair):
            v_MPD = tangent(rows_MPD)
            compatibility(v_MPD)
            field_norm(v_MPD, torch.ones(TOKENS, slots))
            field_norm(v_MPD, torch.ones(TOKENS, slots))
        if pair:
            for slot in range(slots):
                compare(rows_MPD[:, slot])

    return TOKENS / median_seconds(work)


@torch.inference_mode()
def softmax_rate(vocab: int) -> float:
    """Measure logits per second of the running softmax of one checkpoint."""
    logits_PC = torch.randn(POSITIONS, min(PART, vocab))
    softmax = OnlineSoftmax(torch.zeros(POSITIONS, dtype=torch.int64))
    return logits_PC.numel() / median_seconds(lambda: softmax.add(logits_PC, 0))


def read_rate(checkpoints: Sequence[TensorSource]) -> float:
    """Measure bytes per second of reading, hashing and comparing all checkpoints in parallel."""
    # The compared values are random, because a shard may begin with any bytes. Each checkpoint compares half a pair.
    pair_2N = torch.randn(2, PIECE_BYTES // 4, dtype=torch.bfloat16)
    begin = time.perf_counter()
    with ThreadPoolExecutor(len(checkpoints), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        total = sum(pool.map(partial(_read_some, pair_2N), checkpoints))
    return total / (time.perf_counter() - begin)


def _read_some(pair_2N: torch.Tensor, checkpoint: TensorSource) -> int:
    """Read, hash and compare the first tensors of the largest file; return the number of bytes."""
    running, read = hashlib.sha256(), 0
    for piece in beginning(checkpoint, SAMPLE):
        running.update(piece)
        base_N, tuned_N = pair_2N[:, : len(piece) // 4 // 1024 * 1024]
        TensorComparison(base_N.shape).add(base_N, tuned_N, stored=(True, True))
        read += len(piece)
    return read


def median_seconds(work: Callable[[], object]) -> float:
    """Measure the median seconds of repeated `work`; a shared machine reaches its best time only for moments."""
    work()
    seconds, start = [], time.perf_counter()
    while True:
        begin = time.perf_counter()
        work()
        end = time.perf_counter()
        seconds.append(end - begin)
        if end - start >= SECONDS:
            return median(seconds)
