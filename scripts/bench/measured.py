"""Running a command in a process of its own: wall time, peak memory, and what it printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LAUNCH = Path(__file__).with_name("launch.py")


@dataclass(frozen=True)
class Run:
    """One finished process.

    Attributes:
        seconds: from start to end, imports included.
        peak: largest resident set in bytes (`ru_maxrss`).
        output: what it printed.
    """

    seconds: float
    peak: int
    output: str


def python(arguments: Sequence[str], codes: Sequence[int] = (0,)) -> Run:
    """Run this interpreter on `arguments`.

    Raises:
        RuntimeError: when it ends in another exit code than `codes`.
    """
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.NamedTemporaryFile() as report,
    ):
        command = [sys.executable, "-S", str(LAUNCH), report.name, sys.executable, *arguments]
        begin = time.perf_counter()
        subprocess.run(command, stdout=out, stderr=err, env=environment, cwd=ROOT, check=True)
        seconds = time.perf_counter() - begin
        found = json.load(report)
        out.seek(0)
        err.seek(0)
        code = os.waitstatus_to_exitcode(found["status"])
        if code not in codes:
            raise RuntimeError(f"{arguments}: exit code {code}: {err.read().decode()[-2000:]}")
        return Run(seconds, found["peak"], out.read().decode())


def audit(
    base: Path, tuned: Path, probe: Path, work: Path, options: Sequence[str] = (), processes: int = 1
) -> tuple[Run, Mapping[str, Any]]:
    """One `atlas audit` as a user runs it, and its receipt; a verdict of any kind is a success.

    Where several processes share it, `peak` is that of the largest, and torchrun's own start is part of the time.
    """
    receipt = work / "receipt.json"
    receipt.unlink(missing_ok=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    arguments = ["-m", "moe_atlas", "audit", str(base), str(tuned), "--probe", str(probe)]
    arguments = arguments if processes == 1 else torchrun + arguments
    run = python([*arguments, "--receipt", str(receipt), "--force", "--quiet", *options], codes=(0, 1, 3))
    return run, json.loads(receipt.read_text())
