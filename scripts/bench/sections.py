"""The parts of the benchmark, each a function from a `Bench` to a dictionary of figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.bench import ceilings, checkpoints
from scripts.bench.checkpoints import DEEP, FULL, SMALL, Shape
from scripts.bench.measured import audit, python
from scripts.bench.probes import probe

Figures = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where things lie and how large they are.

    Attributes:
        work: folder of checkpoints, probes and receipts.
        shape: the pair that is compared with the peer.
        deep: the shape whose depth is varied.
        depths: layers of the deep shape.
        windows, length: the probe set.
    """

    work: Path
    shape: Shape = FULL
    deep: Shape = DEEP
    depths: tuple[int, ...] = (4, 8, 16)
    windows: int = 16
    length: int = 512

    @classmethod
    def small(cls, work: Path) -> Bench:
        """A run of seconds that shows that everything works; its figures mean nothing."""
        return cls(work, SMALL, replace(SMALL, num_hidden_layers=4), (1, 2, 4), 4, 32)

    @cached_property
    def base(self) -> Path:
        """The base checkpoint."""
        return checkpoints.write(self.work / "base", self.shape)

    def tuned(self, name: str, files: set[str]) -> Path:
        """A tuned checkpoint that changes `files`."""
        return checkpoints.write(self.work / name, self.shape, tuned=files, source=self.base)

    def probe(self, windows: int | None = None, length: int | None = None, vocab: int | None = None) -> Path:
        """A registered probe set; the whole one by default."""
        size = (windows or self.windows, length or self.length, vocab or self.shape.vocab_size)
        return probe(self.work / "probe-{}x{}-{}".format(*size), *size)

    def audit(self, tuned: Path, probe: Path, base: Path | None = None, *options: str) -> Figures:
        """Seconds, peak memory and phases of one audit."""
        run, receipt = audit(base or self.base, tuned, probe, self.work, options)
        read = [side["bytes_read"] for side in receipt["checkpoints"].values()]
        return {
            "seconds": run.seconds,
            "peak": run.peak,
            "bytes_read": sum(read),
            "phases": receipt["timing"].get("phases", {}),
        }


def ceiling(bench: Bench) -> Figures:
    """GEMM rates, reading and hashing."""
    rows = bench.windows * bench.length * bench.shape.num_experts_per_tok // bench.shape.num_experts // 2
    figures: Figures = {
        f"flops_{name}": ceilings.products(bench.shape, max(rows, 1), dtype)
        for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
    }
    figures["sha256"] = ceilings.sha256()
    ceilings.forget(bench.base)
    figures["read_cold"] = ceilings.reading(bench.base)
    figures["read_cached"] = ceilings.reading(bench.base)
    return figures


def peer(bench: Bench) -> Figures:
    """Transformers loading and running both checkpoints, one after the other."""
    full = bench.tuned("full", set(checkpoints.files(bench.shape)))
    tokens = bench.probe().parent / "tokens.npy"
    run = python(["-m", "scripts.bench.peer", str(tokens), str(bench.base), str(full)])
    return {"seconds": run.seconds, "peak": run.peak, **json.loads(run.output.splitlines()[-1])}


def full(bench: Bench) -> Figures:
    """The whole audit of a pair in which every tensor moved, and what `atlas plan` said of it before."""
    tuned = bench.tuned("full", set(checkpoints.files(bench.shape)))
    command = [
        "-m",
        "moe_atlas",
        "plan",
        str(bench.base),
        str(tuned),
        "--probe",
        str(bench.probe()),
        "--json",
    ]
    return {"plan": json.loads(python(command).output), **bench.audit(tuned, bench.probe())}


def frozen(bench: Bench) -> Figures:
    """Tunes that left experts, routers and FFN norms alone: everything else moved, or only attention above."""
    moved = {
        "all": checkpoints.frozen_routing(bench.shape),
        "upper": checkpoints.upper_attention(bench.shape),
    }
    return {
        name: bench.audit(bench.tuned(f"frozen-{name}", files), bench.probe())
        for name, files in moved.items()
    }


def aa(bench: Bench) -> Figures:
    """The base against itself."""
    return bench.audit(bench.base, bench.probe())


def io(bench: Bench) -> Figures:
    """One short window from a cold cache, against reading and hashing the same bytes once, as cold."""
    folders = [bench.base, bench.tuned("full", set(checkpoints.files(bench.shape)))]
    short = bench.probe(1, min(64, bench.length))
    for folder in folders:
        ceilings.forget(folder)
    figures = bench.audit(folders[1], short)
    for folder in folders:
        ceilings.forget(folder)
    return {**figures, "read_and_hash": ceilings.read_and_hash(folders)}


def deep_pair(bench: Bench, layers: int) -> tuple[Path, Path]:
    """The deep pair cut to so many layers."""
    pair = []
    for name in ("base", "tuned"):
        moved = set(checkpoints.files(bench.deep)) if name == "tuned" else set()
        whole = checkpoints.write(bench.work / f"deep-{name}", bench.deep, tuned=moved)
        shape = replace(bench.deep, num_hidden_layers=layers)
        pair.append(
            whole
            if shape == bench.deep
            else checkpoints.shallower(bench.work / f"deep-{name}-{layers}", whole, shape)
        )
    return pair[0], pair[1]


def memory(bench: Bench) -> Figures:
    """Peak memory and seconds over depth, and the least squares slope of both."""
    probe = bench.probe(max(bench.windows // 4, 1), bench.length, bench.deep.vocab_size)
    runs = []
    for layers in bench.depths:
        base, tuned = deep_pair(bench, layers)
        runs.append(bench.audit(tuned, probe, base))
    return {
        "layers": list(bench.depths),
        "peak": [run["peak"] for run in runs],
        "seconds": [run["seconds"] for run in runs],
        "bytes_per_layer": line(bench.depths, [run["peak"] for run in runs])["slope"],
        "time": line(bench.depths, [run["seconds"] for run in runs]),
    }


def scaling(bench: Bench) -> Figures:
    """Seconds over tokens, ×1, ×2, ×4."""
    tuned = bench.tuned("full", set(checkpoints.files(bench.shape)))
    counts = [max(bench.windows // 4, 1) * factor for factor in (1, 2, 4)]
    runs = [bench.audit(tuned, bench.probe(windows)) for windows in counts]
    tokens = [count * bench.length for count in counts]
    seconds = [run["seconds"] for run in runs]
    return {"tokens": tokens, "seconds": seconds, "time": line(tokens, seconds)}


def ranks(bench: Bench) -> Figures:
    """The whole audit by two processes on a thread each, and by one on two: how many bytes the busier one reads."""
    pair = bench.base, bench.tuned("full", set(checkpoints.files(bench.shape))), bench.probe(), bench.work
    alone, receipt = audit(*pair, ["--threads", "2"])
    bytes_alone = sum(side["bytes_read"] for side in receipt["checkpoints"].values())
    run, receipt = audit(*pair, ["--threads", "1"], processes=2)
    shares = [sum(part["bytes_read"].values()) for part in receipt["timing"]["processes"]]
    return {
        "seconds": run.seconds,
        "peak": run.peak,
        "bytes_read": max(shares),
        "bytes_per_rank": shares,
        "bytes_alone": bytes_alone,
        "seconds_alone": alone.seconds,
        "phases": receipt["timing"]["phases"],
    }


def line(x: Any, y: Any) -> Figures:
    """Least squares slope, intercept and R²."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + intercept)
    total = np.asarray(y) - np.mean(y)
    r2 = 1.0 - float(residual @ residual) / float(total @ total) if float(total @ total) else 1.0
    return {"slope": float(slope), "intercept": float(intercept), "r2": r2}


SECTIONS: dict[str, Callable[[Bench], Figures]] = {
    "ceiling": ceiling,
    "peer": peer,
    "full": full,
    "frozen": frozen,
    "aa": aa,
    "io": io,
    "memory": memory,
    "scaling": scaling,
    "ranks": ranks,
}
