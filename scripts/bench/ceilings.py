"""What the machine can do: matrix products at these shapes, reading from disk and page cache, sha256."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from scripts.bench.checkpoints import Shape

SECONDS = 1.0


def best_rate(work: Callable[[], object], amount: float) -> float:
    """`amount` per second of `work`, the best of repetitions over about a second."""
    work()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return amount / best


def products(shape: Shape, rows: int, dtype: torch.dtype) -> float:
    """FLOP/s of the three matrix products of an expert on `rows` tokens."""
    d, h = shape.hidden_size, shape.intermediate_size
    x_PD, x_PH = torch.randn(rows, d).to(dtype), torch.randn(rows, h).to(dtype)
    w_HD, w_DH = torch.randn(h, d).to(dtype), torch.randn(d, h).to(dtype)

    def work() -> None:
        torch.nn.functional.linear(x_PD, w_HD)
        torch.nn.functional.linear(x_PD, w_HD)
        torch.nn.functional.linear(x_PH, w_DH)

    return best_rate(work, 6.0 * rows * d * h)


def sha256() -> float:
    """Bytes hashed per second on one core."""
    data = bytes(64 << 20)
    return best_rate(lambda: hashlib.sha256(data).digest(), len(data))


def forget(folder: Path) -> None:
    """Drop a checkpoint's files from the page cache (advice that Linux follows for clean pages)."""
    os.sync()
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def reading(folder: Path) -> float:
    """Bytes read per second, one file after the other, as warm as the page cache is."""
    buffer, total, begin = bytearray(8 << 20), 0, time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                total += count
    return total / (time.perf_counter() - begin)


def read_and_hash(folders: list[Path]) -> float:
    """Seconds to read and hash every byte of some checkpoints once, one thread each, as `sha256sum` does."""
    from concurrent.futures import ThreadPoolExecutor

    def digest(folder: Path) -> None:
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb", buffering=0) as stream:
                hashlib.file_digest(stream, "sha256")

    begin = time.perf_counter()
    with ThreadPoolExecutor(len(folders)) as pool:
        list(pool.map(digest, folders))
    return time.perf_counter() - begin


def machine() -> str:
    """Processor, cores and memory in one line."""
    text = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = torch.get_num_threads()
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {threads} threads, torch {torch.__version__}"
