"""Peak memory of whole audits, each in a process of its own: it follows the width of a layer, never the depth.

The peak is `VmHWM` of the process itself. (`ru_maxrss` of a child starts from what its parent held when it was
started, and a test runner with two frameworks loaded holds more than the audit does.)
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from moe_atlas.auditing.cost.memory import minimum
from moe_atlas.cli import CACHES
from scripts.oracle import tiny
from tests.support import pairs

MIB = 1 << 20
DEPTHS = (4, 8, 16)
WIDE = {
    "hidden_size": 256,
    "moe_intermediate_size": 256,
    "num_experts": 16,
    "head_dim": 32,
    "max_position_embeddings": 128,
}
PROGRAM = """
import sys
from moe_atlas.cli import run
code = run(sys.argv[1:])
status = open("/proc/self/status").read()
print(code, status.split("VmHWM:")[1].split()[0])
"""
PRODUCTS = """
import ctypes
import torch
from moe_atlas import cli

SIZES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in SIZES]

def held():
    info = mallinfo()
    return info.uordblks + info.hblkhd

def multiply(counts):
    for rows in counts:
        torch.nn.functional.linear(x_PD[:rows], w_HD)

@torch.inference_mode()
def run(arguments):
    multiply(range(8, 1608, 16))
    before = held()
    multiply(range(16, 1616, 16))
    print(held() - before)
    return 0

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
torch.set_num_threads(1)
x_PD, w_HD = (torch.zeros(rows, 1024, dtype=torch.bfloat16) for rows in (1616, 1024))
cli.run = run
cli.main()
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
GLIBC = hasattr(ctypes.CDLL(None), "mallinfo2")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("memory")
    pairs.probe(root / "probe", documents=4, length=64)
    for depth in DEPTHS:
        base = tiny.save("qwen3_moe", root / f"base-{depth}", seed=3, num_hidden_layers=depth, **WIDE)
        pairs.variant(base, root / f"tuned-{depth}", pairs.jitter(1e-2, lambda name: "self_attn" in name))
    return root


def layer_bytes(root):
    """Size of one layer on disk."""
    tensors = pairs.read(root / "base-4")
    return sum(tensor.nbytes for name, tensor in tensors.items() if ".layers.1." in name)


def peak(root, depth, *extra):
    """Peak resident bytes of one audit."""
    sides = [str(root / f"{side}-{depth}") for side in ("base", "tuned")]
    arguments = [*sides, "--probe", str(root / "probe/probes.yaml"), "--threads", "1", "--quiet", "--force"]
    arguments += ["--receipt", str(root / "receipt.json"), *extra]
    command = [sys.executable, "-c", PROGRAM, "audit", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    code, kib = done.stdout.split()[-2:]
    assert code in ("0", "1", "3"), done.stderr
    return int(kib) * 1024


@pytest.mark.skipif(not GLIBC, reason="asks glibc what is held")
def test_products_with_ever_new_counts_of_rows_leave_nothing_behind():
    """Every layer brings its own counts: kept prepared, these 100 products would hold 25 MB in either cache."""
    environment = {name: value for name, value in os.environ.items() if name not in CACHES}
    command = [sys.executable, "-c", PRODUCTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * MIB


@pytest.mark.slow
def test_the_peak_does_not_grow_with_depth(root):
    layer = layer_bytes(root)
    peaks = {depth: peak(root, depth) for depth in DEPTHS}
    shown = ", ".join(f"{depth} layers {size / MIB:.0f} MiB" for depth, size in peaks.items())
    print(f"one layer {layer / MIB:.1f} MiB; peak RSS of an audit: {shown}")
    # Twelve more layers of each checkpoint are 24 layers of bytes: a walk that kept a tenth of them would show.
    assert max(peaks.values()) - min(peaks.values()) < 2 * layer


@pytest.mark.slow
def test_the_peak_does_not_grow_with_the_vocabulary(root):
    """Embedding and head of the larger pair are 4 × 195 MiB; a whole one of them would show."""
    peaks = {}
    for vocab in (2_000, 200_000):
        shape = WIDE | {"num_hidden_layers": 2, "vocab_size": vocab}
        base = tiny.save("qwen3_moe", root / f"base-v{vocab}", seed=3, **shape)
        pairs.variant(base, root / f"tuned-v{vocab}", pairs.jitter(1e-2, lambda name: "lm_head" in name))
        peaks[vocab] = peak(root, f"v{vocab}")
    shown = ", ".join(f"{vocab} entries {size / MIB:.0f} MiB" for vocab, size in peaks.items())
    print(f"peak RSS of an audit: {shown}")
    assert peaks[200_000] - peaks[2_000] < 100 * MIB


@pytest.mark.slow
def test_a_stated_limit_is_kept(root):
    tokens = 8 * 64
    spec, _ = tiny.open_tiny(root / "base-16")
    needed = minimum([spec, spec], tokens, torch.float32.itemsize, everyone=False)
    limit = -(-needed // MIB)
    reached = peak(root, 16, "--memory", f"{limit}MiB")
    print(f"limit {limit} MiB, reached {reached / MIB:.0f} MiB")
    assert reached <= limit * MIB
