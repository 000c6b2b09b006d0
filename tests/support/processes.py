"""Several processes that share an audit, started as torchrun starts them, and ended when a test is over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds; a process that takes longer hangs


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    paths = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return os.environ | {key: str(value) for key, value in place.items()} | paths


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(arguments: Sequence[Sequence[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """One interpreter for each list of arguments, all of one group; killed at the end if they are still there."""
    port, size = free_port(), len(arguments)
    processes = [
        subprocess.Popen(
            [sys.executable, *own], env=environment(rank, size, port), cwd=ROOT, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, own in enumerate(arguments)
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def together(arguments: Sequence[Sequence[str]]) -> list[Ended]:
    """Run them to their ends."""
    with started(arguments) as processes:
        return [ended(process) for process in processes]


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for a process."""
    out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, out, err)
