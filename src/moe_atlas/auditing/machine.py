"""The machine an audit runs on: its device, its threads, its memory's end, and what the receipt says of it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from moe_atlas.auditing.options import Place
from moe_atlas.errors import ResourceExhausted, UsageError
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
        UsageError: E_DEVICE when CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("E_DEVICE", "--device cuda", "no CUDA device is available here", "use --device cpu")
    if name == "cpu" or place is None:
        return torch.device(name)
    if place.local >= torch.cuda.device_count():
        problem = f"{torch.cuda.device_count()} CUDA devices for more processes"
        raise UsageError("E_DEVICE", "--device cuda", problem, "start one process for each")
    return torch.device(name, place.local)


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
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise out_of_memory() from error
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise out_of_memory() from error


def out_of_memory() -> ResourceExhausted:
    """The error of an audit that ran out of memory."""
    step = "register fewer or shorter windows, or a token_stride, and try again"
    return ResourceExhausted("E_MEMORY", "audit", "an allocation failed; nothing was written", step)
