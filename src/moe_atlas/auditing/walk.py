"""The state of one audit on its way through the layers, and the evidence that it collects."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from moe_atlas.auditing.clock import Clock
from moe_atlas.auditing.layer.batches import BATCH_TOKENS, Batch
from moe_atlas.auditing.layer.prefetch import DEPTH, background
from moe_atlas.auditing.layer.reading import Arrays
from moe_atlas.auditing.layer.side import Side
from moe_atlas.auditing.layer.view import Scope
from moe_atlas.auditing.processes.group import Group
from moe_atlas.geometry.pair import NoiseBand
from moe_atlas.models.spec import TensorRef
from moe_atlas.options import Progress
from moe_atlas.weights.ledger import WeightsLedger


class Resume(Protocol):
    """Where a walk leaves its state between layers."""

    def restore(self, walk: Walk) -> int:
        """Bring back the latest state; how many layers it covers, 0 when there is none."""

    def save(self, walk: Walk, done: int) -> None:
        """Keep the state after `done` layers."""


class Nowhere:
    """Keeps nothing: an interrupted audit starts again."""

    def restore(self, walk: Walk) -> int:
        """There is no state."""
        return 0

    def save(self, walk: Walk, done: int) -> None:
        """Keep nothing."""


@dataclass
class Evidence:
    """Everything measured: window arrays, and the facts that no window carries."""

    arrays: Arrays = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    identity: list[dict[str, Any]] = field(default_factory=list)
    vocabulary: dict[str, Any] = field(default_factory=dict)
    ledger: WeightsLedger = field(default_factory=WeightsLedger)
    unreplayed: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Walk:
    """One audit under way.

    Attributes:
        sides: the base, and the tuned checkpoint unless a baseline is recorded.
        batches: the partition of the probe windows.
        bands: noise band per layer index.
        pool: threads that read ahead.
        depth: experts read ahead.
        held_tokens: tokens whose evaluated experts may be in memory together; one batch at least.
        skips: leave out what equal values make unnecessary; the numbers are the same, bit for bit, either way.
        group: the processes that share the audit.
        in_step: whether both checkpoints carry the very same states.
        measures_noise: the sides are one checkpoint under two execution orders.
        resume: where the state between layers is kept.
        chart_maps: sample this many experts per layer for rank and condition of the overlap maps; 0 for none.
    """

    sides: Sequence[Side]
    batches: Sequence[Batch]
    scope: Scope
    protected: frozenset[int]
    progress: Progress
    bands: dict[int, NoiseBand] = field(default_factory=dict)
    pool: Executor = field(default_factory=background)
    depth: int = DEPTH
    held_tokens: int = BATCH_TOKENS
    skips: bool = True
    chart_maps: int = 0
    measures_noise: bool = False
    group: Group = field(default_factory=Group)
    in_step: bool = False
    resume: Resume = field(default_factory=Nowhere)
    evidence: Evidence = field(default_factory=Evidence)
    clock: Clock = field(default_factory=Clock)

    @property
    def alike(self) -> bool:
        """Whether two checkpoints are computed by the same arithmetic, so that equal tensors give equal numbers."""
        return (
            self.skips and len(self.sides) == 2 and self.sides[0].replay.computes_like(self.sides[1].replay)
        )

    @property
    def own(self) -> list[int]:
        """Numbers of the batches whose states this process holds."""
        return [number for number in range(len(self.batches)) if self.group.owns(number)]

    def enter(self, refs: Sequence[Sequence[TensorRef]]) -> None:
        """Read tensors of every checkpoint at once, dropping those of the last layer."""
        with self.clock.phase("reading the rest"):
            for side in self.sides:
                side.leave()
            readers = self.group.deliver([side.reader for side in self.sides], refs, self.pool)
            list(self.pool.map(Side.enter, self.sides, refs, readers))

    @cached_property
    def alike_layers(self) -> list[bool]:
        """For every layer, whether both checkpoints compute it alike, wherever its tensors are stored."""
        pairs = zip(*(side.spec.layers for side in self.sides), strict=True)
        return [first.describe() == second.describe() for first, second in pairs]

    def states_identical(self, number: int) -> bool:
        """Whether everything in front of the `number`-th layer holds the same values and is computed alike."""
        indices = {None, *(layer.index for layer in self.sides[0].spec.layers[:number])}
        return all(self.alike_layers[:number]) and not indices & self.evidence.ledger.changed_layers

    def settle(self) -> None:
        """Once their changes are recorded, let equal values be computed with as one tensor, the base's."""
        if len(self.sides) == 2:
            self.sides[1].settle(self.sides[0])
