"""The machine of an audit: device, threads, precision, memory errors, and the environment facts of the receipt."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from moe_atlas.errors import ResourceExhausted, UsageError, out_of_memory
from moe_atlas.options import Place
from moe_atlas.text import shown
from moe_atlas.version import __version__


def environment_facts() -> dict[str, str]:
    """Return the versions of software and the kind of machine."""
    return {
        "moe_atlas": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "system": platform.system(),
    }


def pick_device(name: str, place: Place | None = None) -> torch.device:
    """Return the requested device; processes that share an audit have one GPU each.

    Raises:
        UsageError: E_DEVICE if CUDA is requested and no device is available, or CUDA does not start.
    """
    if name != "cuda":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise _no_device("no CUDA device is available here")
    if place is not None and place.local >= torch.cuda.device_count():
        problem = f"{torch.cuda.device_count()} CUDA devices for more processes"
        raise UsageError("E_DEVICE", "--device cuda", problem, "start one process per device")
    try:
        device = torch.device("cuda", torch.cuda.current_device() if place is None else place.local)
        torch.zeros(1, device=device).item()
    except (
        RuntimeError
    ) as error:  # for example a driver mismatch, no free memory, or a device in exclusive use
        raise _no_device(f"CUDA does not start: {shown(str(error).split(chr(10))[0], 200)}") from error
    return device


def _no_device(problem: str) -> UsageError:
    return UsageError("E_DEVICE", "--device cuda", problem, "use --device cpu")


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply and convolve float32 in float32, and sum bfloat16 products in float32, whatever the process has set.

    TF32 keeps 10 of the 23 bits of float32. oneDNN may use bfloat16, with 7 bits, for float32 on CPUs if the process
    allows it. Both change routed sets. A bfloat16 sum with intermediate rounding depends on how cuBLAS splits it.
    """
    before = [(switches, name, getattr(switches, name)) for switches, name, _ in _precision()]
    for switches, name, exact in _precision():
        setattr(switches, name, exact)
    try:
        yield
    finally:
        for switches, name, value in before:
            setattr(switches, name, value)


def _precision() -> list[tuple[Any, str, Any]]:
    """Return switches as (object, attribute, value); with these values, torch rounds no more than each dtype does."""
    backends: Any = torch.backends  # the attributes of newer torch versions have no types
    matmul, cudnn, onednn = backends.cuda.matmul, backends.cudnn, backends.mkldnn
    sums = (matmul, "allow_bf16_reduced_precision_reduction", False)
    if not hasattr(matmul, "fp32_precision"):  # torch before 2.9
        return [sums, (matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    # torch refuses to read the older attributes after a process set the newer ones.
    places = (matmul, cudnn.conv, onednn.matmul, onednn.conv)
    return [sums, *((place, "fp32_precision", "ieee") for place in places)]


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Set the number of CPU threads of matrix products inside this context; None keeps the current number."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_errors_named() -> Iterator[None]:
    """Turn a failed allocation into an error of one line with exit code 6.

    Raises:
        ResourceExhausted: E_MEMORY.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        step = "register fewer or shorter windows, or a token_stride, and try again"
        problem = "an allocation failed; nothing was written"
        raise ResourceExhausted("E_MEMORY", "audit", problem, step) from error
