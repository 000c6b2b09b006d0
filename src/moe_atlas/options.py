"""How an audit is run, as opposed to what is asked (that is the probe file's business). Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Dtype = Literal["auto", "float32", "bfloat16"]
Router = Literal["float32", "native"]
Device = Literal["cpu", "cuda"]
Execution = Literal["order", "float32", "bfloat16"]


class Progress(Protocol):
    """Who watches: told the phase, and every step passed with the bytes read so far."""

    def phase(self, name: str, steps: int) -> None:
        """A phase of `steps` steps begins."""

    def step(self, detail: str, bytes_read: int) -> None:
        """One step of the phase is done."""


class Silent:
    """Nobody watches."""

    def phase(self, name: str, steps: int) -> None:
        """Say nothing."""

    def step(self, detail: str, bytes_read: int) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that share an audit.

    Attributes:
        rank: its number; 0 leads.
        size: how many there are.
        local: its number on its machine, which is also that of its GPU.
    """

    rank: int
    size: int
    local: int


@dataclass(frozen=True)
class AuditOptions:
    """How to run.

    Attributes:
        dtype: dtype of the matrix products; `auto` is the base checkpoint's own.
        router: `float32` reads dispatch scores exactly; `native` rounds where the reference implementation does,
            which shows the routing a serving stack takes.
        device: `cpu` or `cuda`.
        threads: CPU threads of the matrix products; torch's choice when None. Recorded: bits depend on it.
        memory: bytes the audit may use, or None for no stated limit.
        noise_floor: also audit the base against itself: `order` under another execution order, `float32` or
            `bfloat16` in another compute dtype. Measured without being asked where a budget is within ten times of
            the floor that the baseline receipt stored.
        skips: leave out what equal values make unnecessary; the numbers are the same, bit for bit, either way.
        chart_maps: pairs of experts per layer whose overlap map is measured; 0 for none.
        baseline: a baseline receipt whose overlap and occupancy are the handoff reference.
        policy_from: the central policy file under which the probe set was registered.
        resume: keep the state after every layer in this file, and in the second that of the noise floor, and go on
            from there if an interrupted audit left one; None keeps nothing.
        place: this process's among those that share the audit; None when it is alone.
        attempts: receipts of registered attempts at the same objective.
        accepted: keys of config.json, as messages name them, that may stand there with these values although nothing
            reads them; the receipt records those that do. A central policy must allow it.
    """

    dtype: Dtype = "auto"
    router: Router = "float32"
    device: str = "cpu"
    threads: int | None = None
    memory: int | None = None
    noise_floor: Execution | None = None
    skips: bool = True
    chart_maps: int = 0
    baseline: Path | None = None
    policy_from: Path | None = None
    resume: tuple[Path, Path] | None = None
    place: Place | None = None
    attempts: tuple[Path, ...] = ()
    accepted: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)
