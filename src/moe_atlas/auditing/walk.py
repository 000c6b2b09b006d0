"""The state of one audit during its walk through the layers, and the evidence that it collects."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from moe_atlas.auditing.clock import Clock
from moe_atlas.auditing.layer.batches import BATCH_TOKENS, WindowBatch
from moe_atlas.auditing.layer.measurements import Arrays
from moe_atlas.auditing.layer.prefetch import DEPTH, low_priority_pool
from moe_atlas.auditing.layer.side import Side
from moe_atlas.auditing.layer.view import Scope
from moe_atlas.auditing.processes.group import Group
from moe_atlas.geometry.pair import NoiseBand
from moe_atlas.models.spec import TensorRef
from moe_atlas.options import Progress
from moe_atlas.weights.ledger import WeightsLedger


class Resume(Protocol):
    """A store for the state of a walk between layers."""

    @property
    def token(self) -> str | None:
        """The unique name of an audit that can be resumed; None without a state."""

    def restore(self, walk: Walk) -> int:
        """Restore the latest state; return the number of finished layers, 0 without a state."""

    def save(self, walk: Walk, done: int) -> None:
        """Save the state after `done` layers."""


class NoResume:
    """A store that saves nothing: an interrupted audit starts from the beginning."""

    token = None

    def restore(self, walk: Walk) -> int:
        """Return 0: there is no state."""
        return 0

    def save(self, walk: Walk, done: int) -> None:
        """Save nothing."""


@dataclass
class Evidence:
    """The evidence of an audit.

    Attributes:
        arrays: window arrays by name, and token arrays if the audit keeps them.
        layers: facts of each routed layer.
        identity: expert identity of each routed layer.
        vocabulary: row changes of embedding and head.
        ledger: the weights ledger.
        unreplayed: comparison of the skipped tensors, one row per part of the checkpoint.
    """

    arrays: Arrays = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    identity: list[dict[str, Any]] = field(default_factory=list)
    vocabulary: dict[str, Any] = field(default_factory=dict)
    ledger: WeightsLedger = field(default_factory=WeightsLedger)
    unreplayed: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Walk:
    """The state of one running audit.

    Attributes:
        sides: the base and, unless the audit records a baseline, the tuned checkpoint.
        batches: the partition of the probe windows.
        scope: settings of the evaluation.
        protected: indices of the protected layers.
        progress: display of the progress.
        bands: noise band by layer index.
        pool: background threads for reads and comparisons.
        read_ahead: number of experts to prefetch.
        held_tokens: most tokens in one pass over a layer's experts; a pass has at least one batch.
        skips: whether to skip computations that equal values make unnecessary; this changes no bit of a number.
        chart_maps: number of expert pairs per layer whose overlap map is measured.
        keeps_tokens: whether the audit keeps evidence of single tokens.
        measures_noise: whether the sides are one checkpoint in two executions.
        group: the processes that share the audit.
        in_step: whether the states of both checkpoints are equal so far.
        resume: store for the state between layers.
        evidence: the evidence collected so far.
        clock: time by phase.
    """

    sides: Sequence[Side]
    batches: Sequence[WindowBatch]
    scope: Scope
    protected: frozenset[int]
    progress: Progress
    bands: dict[int, NoiseBand] = field(default_factory=dict)
    pool: Executor = field(default_factory=low_priority_pool)
    read_ahead: int = DEPTH
    held_tokens: int = BATCH_TOKENS
    skips: bool = True
    chart_maps: int = 0
    keeps_tokens: bool = False
    measures_noise: bool = False
    group: Group = field(default_factory=Group)
    in_step: bool = False
    resume: Resume = field(default_factory=NoResume)
    evidence: Evidence = field(default_factory=Evidence)
    clock: Clock = field(default_factory=Clock)

    @property
    def same_arithmetic(self) -> bool:
        """Whether a pair may reuse results: skipping is on, and both replays give equal bits for equal tensors."""
        return (
            self.skips and len(self.sides) == 2 and self.sides[0].replay.computes_like(self.sides[1].replay)
        )

    @property
    def own_batches(self) -> list[int]:
        """The numbers of the batches whose states this process holds."""
        return [number for number in range(len(self.batches)) if self.group.owns(number)]

    def load(self, refs: Sequence[Sequence[TensorRef]]) -> None:
        """Free the resident tensors, and read the next tensors of all checkpoints in parallel."""
        with self.clock.phase("reading the rest"):
            for side in self.sides:
                side.free()
            readers = self.group.read_once([side.reader for side in self.sides], refs, self.pool)
            list(self.pool.map(Side.load, self.sides, refs, readers))

    @cached_property
    def equal_layers(self) -> list[bool]:
        """For every layer, whether both checkpoints have the same spec, wherever their tensors are stored."""
        pairs = zip(*(side.spec.layers for side in self.sides), strict=True)
        return [first.describe() == second.describe() for first, second in pairs]

    def states_identical(self, number: int) -> bool:
        """Return whether all tensors and specs in front of the `number`-th layer are equal."""
        indices = {None, *(layer.index for layer in self.sides[0].spec.layers[:number])}
        return all(self.equal_layers[:number]) and not indices & self.evidence.ledger.changed_layers

    def share_equal(self) -> None:
        """Use the base's tensor for both checkpoints where values are equal; call `record_weights` first."""
        if len(self.sides) == 2:
            self.sides[1].share_equal(self.sides[0])
