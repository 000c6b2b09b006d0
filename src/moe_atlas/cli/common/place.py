"""Find whether torchrun started this process as one of several that share an audit. Torch-free."""

from __future__ import annotations

import contextlib
import os
import sys

from moe_atlas.errors import UsageError
from moe_atlas.options import Place


def place() -> Place | None:
    """Return this process's place among them; None if it is alone.

    Only `python -m moe_atlas`, which is what torchrun starts, looks for one: a training that is itself run by torchrun
    and starts `atlas` hands its own environment on.

    Raises:
        UsageError: ``E_RANK`` for an environment that makes no sense.
    """
    environment = {
        name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    }
    if getattr(sys.modules["__main__"], "__package__", None) != "moe_atlas" or not all(environment.values()):
        return None
    numbers = [environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(number.isdecimal() for number in numbers) or int(numbers[0]) >= int(numbers[1]):
        found = ", ".join(f"{name}={value}" for name, value in environment.items())
        step = "start the processes with torchrun, or unset these variables"
        raise UsageError("E_RANK", "environment", f"names no process among others: {found}", step)
    found_place = Place(*map(int, numbers))
    return found_place if found_place.size > 1 else None


def leads() -> bool:
    """Return whether this process writes and prints; with an invalid environment, every process prints the error."""
    with contextlib.suppress(UsageError):
        here = place()
        return here is None or here.rank == 0
    return True
