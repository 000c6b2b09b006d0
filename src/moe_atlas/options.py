"""Options of how an audit runs; the probe file says what the audit measures. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Dtype = Literal["auto", "float32", "bfloat16"]
Router = Literal["float32", "native"]
Device = Literal["cpu", "cuda"]
Execution = Literal["order", "float32", "bfloat16"]
AdapterAs = Literal["merged", "live"]
AdapterLayout = Literal["rank_major", "grouped_by_expert", "a_on_input", "a_on_output"]
RANK_MAJOR: AdapterLayout = "rank_major"
BY_EXPERT: AdapterLayout = "grouped_by_expert"
ON_INPUT: AdapterLayout = "a_on_input"
ON_OUTPUT: AdapterLayout = "a_on_output"
ADAPTER_PACKINGS = (RANK_MAJOR, BY_EXPERT)
"""How B of a stack of experts is packed: the expert varies fastest along its columns, as PEFT trains it, or slowest."""
ADAPTER_SIDES = (ON_INPUT, ON_OUTPUT)
"""Which side of an expert's matrix A is on: that of the inputs, or that of the outputs (PEFT 0.17 and 0.18)."""


class Progress(Protocol):
    """A display of the audit's progress."""

    def phase(self, name: str, steps: int) -> None:
        """Show the start of a phase of `steps` steps."""

    def step(self, detail: str, bytes_read: int) -> None:
        """Show the end of one step of the phase, with the bytes read so far."""


class Silent:
    """A display that shows nothing."""

    def phase(self, name: str, steps: int) -> None:
        """Show nothing."""

    def step(self, detail: str, bytes_read: int) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Place:
    """The rank of a process among the processes that share an audit.

    Attributes:
        rank: number of the process; process 0 leads.
        size: number of processes.
        local: number of the process on its machine, which is also the number of its GPU.
    """

    rank: int
    size: int
    local: int


@dataclass(frozen=True)
class AuditOptions:
    """Options of one audit.

    Attributes:
        dtype: dtype of the matrix products; `auto`: the dtype of the base checkpoint.
        router: `float32` computes dispatch scores in float32; `native` rounds where the reference implementation
            rounds, which shows the routing of a serving stack.
        device: `cpu` or `cuda`.
        threads: CPU threads of the matrix products; None: torch's default. The receipt records the number, because
            the last bits depend on it.
        memory: bytes that the audit may use; None: no stated limit.
        noise_floor: also audit the base against itself: `order` in another execution order, `float32` or `bfloat16`
            in another compute dtype. If None, the audit still measures the noise floor when a budget is within ten
            times the floor in the baseline receipt.
        yardstick: also audit the base against its 4-bit copy, which is never written, or take the result from the cache
            of the user; reports show each drift as a multiple of the copy's.
        skips: skip computations that equal values make unnecessary; every number is the same, bit for bit, either way.
        chart_maps: number of expert pairs per layer whose overlap map is measured.
        tokens: also keep the change of loss and of routed sets of every token, in a file beside the receipt; an audit
            of a pair alone has it.
        baseline: a baseline receipt; its overlap and occupancy are the handoff reference.
        policy_from: the central policy file under which the probe set was registered.
        resume: files that keep the state of the audit, its noise floor and its yardstick after every layer; an audit
            continues from a state that an interrupted audit left there. None: keep no state.
        place: rank of this process among the processes that share the audit; None for a single process.
        attempts: receipts of registered attempts at the same objective.
        accepted: keys of config.json, spelled as in messages, that may have these values although nothing reads them;
            the receipt records the keys that occur. A central policy must allow this.
        adapter_as: how an adapter changes its base: `merged` rounds each sum to the base's dtype, as PEFT's
            `merge_and_unload` does; `live` keeps the sum in float32.
        adapter_layout: readings of an adapter's stacks of experts, where its files leave two.
        like: the checkpoint whose configuration describes a training checkpoint that stands alone or as the base.
        progress: display of the audit's progress.
    """

    dtype: Dtype = "auto"
    router: Router = "float32"
    device: str = "cpu"
    threads: int | None = None
    memory: int | None = None
    noise_floor: Execution | None = None
    yardstick: bool = False
    skips: bool = True
    chart_maps: int = 0
    tokens: bool = False
    baseline: Path | None = None
    policy_from: Path | None = None
    resume: tuple[Path, Path, Path] | None = None
    place: Place | None = None
    attempts: tuple[Path, ...] = ()
    accepted: Mapping[str, Any] = field(default_factory=dict)
    adapter_as: AdapterAs = "merged"
    adapter_layout: tuple[AdapterLayout, ...] = ()
    like: Path | None = None
    progress: Progress = field(default_factory=Silent)
