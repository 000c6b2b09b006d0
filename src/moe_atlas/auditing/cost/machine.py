"""The machine an audit runs on: its device, its threads, its memory's end, and what the receipt says of it."""

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
    """Versions and machine."""
    return {
        "moe_atlas": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "system": platform.system(),
    }


def pick_device(name: str, place: Place | None = None) -> torch.device:
    """The device asked for; where processes share an audit, each has its own GPU.

    Raises:
        UsageError: E_DEVICE when CUDA is asked for and there is none, or it does not start.
    """
    if name != "cuda":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise _no_device("no CUDA device is available here")
    if place is not None and place.local >= torch.cuda.device_count():
        problem = f"{torch.cuda.device_count()} CUDA devices for more processes"
        raise UsageError("E_DEVICE", "--device cuda", problem, "start one process for each")
    try:
        device = torch.device("cuda", torch.cuda.current_device() if place is None else place.local)
        torch.zeros(1, device=device).item()
    except RuntimeError as error:  # another driver, no memory left, another process's device
        raise _no_device(f"CUDA does not start: {shown(str(error).split(chr(10))[0], 200)}") from error
    return device


def _no_device(problem: str) -> UsageError:
    return UsageError("E_DEVICE", "--device cuda", problem, "use --device cpu")


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply and convolve float32 as float32, and add up bfloat16 products in float32, whatever the process has set.

    TF32 keeps 10 of float32's 23 bits, and bfloat16, which oneDNN takes for float32 on CPUs where a process allows it,
    keeps 7: both move routed sets. A bfloat16 sum that is rounded in between depends on how cuBLAS splits it.
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
    """Switches, their names, and the values under which nothing is rounded more than its dtype says."""
    backends: Any = torch.backends  # those of newer versions have no types
    matmul, cudnn, onednn = backends.cuda.matmul, backends.cudnn, backends.mkldnn
    sums = (matmul, "allow_bf16_reduced_precision_reduction", False)
    if not hasattr(matmul, "fp32_precision"):  # torch before 2.9
        return [sums, (matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    # The older names refuse to be read where these were set.
    places = (matmul, cudnn.conv, onednn.matmul, onednn.conv)
    return [sums, *((place, "fp32_precision", "ieee") for place in places)]


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Pin the CPU threads of matrix products while the audit runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def exhaustion_named() -> Iterator[None]:
    """Turn an allocation that failed into one line and exit code 6."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        step = "register fewer or shorter windows, or a token_stride, and try again"
        problem = "an allocation failed; nothing was written"
        raise ResourceExhausted("E_MEMORY", "audit", problem, step) from error
