"""What runs on a device runs there whole, and gives the CPU's bits: tried on one that is none and computes as the CPU.

A GPU refuses an operation on tensors of two devices; so does this one. What only a GPU can show (its arithmetic, its
streams) is in `test_cuda.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scripts.oracle import tiny
from tests.auditing.device_pairs import BUILD
from tests.support.processes import ROOT


def worked(folder, names):
    """What the worker printed of each pair; its error if one differs or is refused."""
    return run("-m", "tests.auditing.pretend_worker", folder, *names).splitlines()


def run(*arguments):
    """What a Python of its own prints."""
    paths = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | paths, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def test_every_layout_and_option(tmp_path):
    assert len(worked(tmp_path, list(BUILD))) == len(BUILD)


@pytest.mark.slow
def test_every_family(tmp_path):
    assert len(worked(tmp_path, list(tiny.CASES))) == len(tiny.CASES)


def test_it_refuses_what_a_gpu_would():
    code = """
import torch
from tests.support import pretend
there, here = torch.arange(6.0, device="pretend"), torch.arange(6.0)
for refused in (lambda: there + here, lambda: here[there.long()], lambda: torch.cat([here, there]),
                lambda: there.index_select(0, here.long()), lambda: there.numpy()):
    try:
        refused()
    except (RuntimeError, TypeError):
        continue
    raise SystemExit("taken")
assert (there + 1)[here.long()].cpu().tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
assert there[torch.ones(6, dtype=torch.bool)].sum().item() == 15.0
assert {"index by mask": 1, "_local_scalar_dense": 1}.items() <= pretend.counts.items()
"""
    run("-c", code)
