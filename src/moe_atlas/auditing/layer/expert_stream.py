"""The routed experts of one layer, both checkpoints in lock-step, read ahead while others are evaluated.

Each pass over a layer reads every expert once; the first pass also compares them for the weights ledger and for the
account of their identity. No more than a few experts are in memory at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moe_atlas.auditing.layer.device_transfer import transit
from moe_atlas.auditing.layer.prefetch import DEPTH, ahead
from moe_atlas.auditing.layer.requantise import compared, holds, kept, storage
from moe_atlas.auditing.layer.side import Side, Weights
from moe_atlas.auditing.processes.group import Group
from moe_atlas.geometry.chart_maps import overlap_map
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.names import ROUTER_GAIN, ROUTER_TABLE
from moe_atlas.models.spec import LayerSpec, TensorRef
from moe_atlas.weights.comparison import Comparison, TensorChange, together
from moe_atlas.weights.identity import (
    RouterRows,
    looks_initialised,
    may_be_relabelled,
    relabelling,
    repeated,
    sketch,
)
from moe_atlas.weights.ledger import WeightsLedger
from moe_atlas.weights.values import same_values

Looks = dict[str, Comparison]  # by role


@dataclass(frozen=True)
class Sample:
    """What is kept of an expert once its weights are gone."""

    sketch: Tensor
    initialised: bool
    zeroed: bool


@dataclass(frozen=True)
class Expert:
    """One expert of every checkpoint under audit, numbered as in the base.

    Attributes:
        index: its index.
        weights: per checkpoint, in the dtypes the replay multiplies in, by role.
        identical: whether the tuned expert holds the base expert's values.
        by_index: the tuned expert that is stored under the base's index, where a relabelling moved another here.
        requantised: the base expert as the tuned checkpoint's format would keep it; None where both store alike.
    """

    index: int
    weights: tuple[Weights, ...]
    identical: bool
    by_index: Weights | None = None
    requantised: Weights | None = None


@dataclass
class Found:
    """What the first pass keeps of an expert once its weights are gone.

    Attributes:
        samples: by (checkpoint, index there).
        rows: its rows of the weights ledger.
        rows_as_stored: those of what is stored under the same index, where a relabelling moved another there.
    """

    samples: dict[tuple[int, int], Sample] = field(default_factory=dict)
    rows: list[TensorChange] = field(default_factory=list)
    rows_as_stored: list[TensorChange] = field(default_factory=list)


@dataclass
class _Read:
    """An expert as stored, and what comparing it found."""

    stored: list[Weights]
    identical: bool
    requantised: Weights | None = None
    found: Found = field(default_factory=Found)


Moved = tuple[list[Weights], Weights | None, Weights | None]


class LayerExperts:
    """Experts of one layer of every checkpoint under audit, numbered as in the base.

    Args:
        sides: the checkpoints under audit.
        layers: their specs of this layer.
        ledger: where their changes are entered.
        pool: threads that read ahead.
        group: the processes that share the audit; each reads its share.
        depth: how many experts are read ahead.

    Attributes:
        match_E: the consistent relabelling (tuned index of each base expert), or None.
        changes: relative change of each expert's tensors taken together, None where it has no number; known after the
            first pass.
        identical: whether every routed expert holds its counterpart's values; known after the first pass.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        layers: Sequence[LayerSpec],
        ledger: WeightsLedger,
        pool: Executor,
        group: Group,
        *,
        depth: int = DEPTH,
    ) -> None:
        self.sides, self._layers, self._ledger, self._pool, self._group = sides, layers, ledger, pool, group
        self.count, self._depth = layers[0].routed.router.experts, depth
        self._samples: dict[tuple[int, int], Sample] = {}
        self._found: dict[int, Found] = {}
        self._recorded = False
        self.changes: list[float | None] = []
        self._transit = transit(sides[0].replay.device)
        self.identical = len(sides) == 2
        self.match_E = self._find_relabelling() if len(sides) == 2 else None

    def stream(self, *, again: bool = False) -> Generator[Expert]:
        """This process's experts in rising order; the first ones are read from now on, the next in the background.

        Whoever does not take all of them closes it, so that none is being read any more.

        Args:
            again: whether they will be streamed once more.

        Raises:
            IntegrityError: E_CHANGED when a file changed since it was opened.
        """
        share = self._group.share(self.count)
        for side in self.sides:
            side.reader.page_locked, side.reader.again = self._transit.page_locked, again
        return self._prepared(share, ahead(self._begin, share, self._depth))

    def record(self) -> None:
        """Enter what the first pass found, in the order of the experts.

        Raises:
            InputRefused: E_NONFINITE when the base holds a NaN or an infinity.
        """
        if self._recorded:
            return
        found = {expert: kept for part in self._group.gather(self._found) for expert, kept in part.items()}
        for expert in range(self.count):
            self._samples |= found[expert].samples
            for change in found[expert].rows:
                self._ledger.enter(change)
                self.identical &= bool(change.identical)
            self.changes.append(together(found[expert].rows))
            for change in found[expert].rows_as_stored:
                self._ledger.enter(change, as_stored=True)
        self._recorded = True

    def _prepared(
        self, share: range, reads: Generator[tuple[_Read, Callable[[], Moved]]]
    ) -> Generator[Expert]:
        try:
            with closing(reads):
                for index, (read, arrive) in zip(share, reads, strict=True):
                    self._found[index] = read.found
                    moved = arrive()
                    prepared, by_index, requantised = moved
                    yield Expert(index, tuple(prepared), read.identical, by_index, requantised)
                    del prepared, by_index, requantised
                    self._transit.used(moved, partial(self._recycle, read))
                    del moved
            self._transit.finish()
        finally:
            for side in self.sides:
                side.loader.submit(int).result()  # after all that were begun
                side.reader.forget()

    def _begin(self, expert: int) -> Future[tuple[_Read, Callable[[], Moved]]]:
        """Begin to read one expert of each checkpoint, in the order of the experts: so do running hashes take them."""
        loads = [
            self.sides[side].loader.submit(self._stored, side, index) for side, index in self._indices(expert)
        ]
        return self._pool.submit(self._bring, expert, loads)

    def _indices(self, expert: int) -> list[tuple[int, int]]:
        """What is read for an expert, as (checkpoint, index there)."""
        indices = [(side, int(self.stored(side)[expert])) for side in range(len(self.sides))]
        return indices if indices[-1][1] == expert else [*indices, (1, expert)]

    def _bring(self, expert: int, loads: Sequence[Future[Weights]]) -> tuple[_Read, Callable[[], Moved]]:
        """Look at what was read of one expert, and begin to move it to where it is multiplied."""
        read = self._read(expert, [load.result() for load in loads])
        return read, self._transit.send(partial(self._moved, read))

    def _moved(self, read: _Read) -> Moved:
        """What was read, as it is multiplied: of each checkpoint, by index, and requantised."""
        prepared = [self.sides[0].multiplied(read.stored[0])]
        for side, stored in zip(self.sides[1:], read.stored[1:], strict=False):
            again = read.identical and side.replay.dtype == self.sides[0].replay.dtype
            prepared.append(prepared[0] if again else side.multiplied(stored))
        by_index = self.sides[1].multiplied(read.stored[2]) if len(read.stored) > 2 else None
        return (
            prepared,
            by_index,
            None if read.requantised is None else self.sides[0].multiplied(read.requantised),
        )

    def _recycle(self, read: _Read) -> None:
        """Give the memory of an expert that has passed to those that are still to be read."""
        for side, owner in zip(read.stored, (*self.sides, self.sides[-1]), strict=False):
            if side is not read.stored[0] or owner is self.sides[0]:  # an identical expert is held once
                owner.reader.recycle(side.values())

    def stored(self, side: int) -> Tensor:
        """Index under which a checkpoint itself stores each expert, int64 [E]."""
        return torch.arange(self.count) if side == 0 or self.match_E is None else self.match_E

    def sketches(self, side: int) -> Tensor:
        """Sketches of all experts, float32 [E, N]; zeros for an expert without matrices."""
        return _stacked([self._samples[side, expert].sketch for expert in range(self.count)])

    def initialised(self, side: int) -> list[int]:
        """Experts that look untrained."""
        return [expert for expert in range(self.count) if self._samples[side, expert].initialised]

    def zeroed(self, side: int) -> list[int]:
        """Experts with a matrix that is zero throughout."""
        return [expert for expert in range(self.count) if self._samples[side, expert].zeroed]

    def clones(self, side: int) -> list[list[int]]:
        """Groups of experts that hold the same values: suggested by sketches, confirmed on the whole tensors."""
        confirmed = []
        for group in repeated(self.sketches(side)):
            first = self._stored(side, group[0])
            if not first:  # identity experts are alike by design
                continue
            same = [e for e in group[1:] if _equal(first, self._stored(side, e))]
            if same:
                confirmed.append([group[0], *same])
        return confirmed

    def chart_maps(self, side: int, samples: int) -> list[dict[str, Any]]:
        """Rank of W1 and conditioning of the overlap map (Eq. 13) for `samples` neighbouring pairs of experts."""
        real = self.count - self._layers[side].routed.identity_experts
        step = max(1, real // samples)
        pairs = [(e, (e + 1) % real) for e in range(0, real, step)][:samples]
        return [{"from": a, "to": b, **overlap_map(self._w1(side, a), self._w1(side, b))} for a, b in pairs]

    def _w1(self, side: int, expert: int) -> Tensor:
        """W1 of one expert: gate rows over up rows where gated."""
        stored = self._stored(side, expert)
        return torch.cat([stored[role] for role in ("gate_proj", "up_proj") if role in stored])

    def _stored(self, side: int, expert: int) -> Weights:
        return self.sides[side].expert(self._layers[side], expert)

    def _read(self, expert: int, stored: list[Weights]) -> _Read:
        """One expert of each checkpoint, compared in the first pass; runs in the background."""
        pair = len(self.sides) == 2
        if self._recorded:
            read = _Read(stored, pair and _equal(stored[0], stored[1]))
        else:
            found = self._look(expert, self._indices(expert), stored)
            read = _Read(stored, pair and all(row.identical for row in found.rows), found=found)
        read.requantised = self._requantised(expert, stored[0], read.identical) if pair else None
        if (
            read.identical
        ):  # from here on the base's own tensors, whatever dtype the tuned checkpoint keeps them in
            self.sides[1].reader.recycle(stored[1].values())
            stored[1] = stored[0]
        return read

    def _requantised(self, expert: int, base: Weights, identical: bool) -> Weights | None:
        """Base expert `expert` as the tuned checkpoint's format would keep it; None where that loses nothing."""
        own, other = (
            storage(self.sides[side].checkpoint, self._refs(side, int(self.stored(side)[expert])))
            for side in (0, 1)
        )
        if all(holds(other[role], own[role]) for role in own):
            return None
        return base if identical else kept(base, other)

    def _look(self, expert: int, indices: Sequence[tuple[int, int]], stored: Sequence[Weights]) -> Found:
        """What is kept of an expert of each checkpoint, every byte looked at once."""
        base, pair = stored[0], len(stored) > 1
        looks = self._compared(stored[:2], indices[:2])
        found = Found({indices[0]: _sample(base, looks, 0)}, self._changes(expert, looks))
        if pair:
            same = all(row.identical for row in found.rows)
            found.samples[indices[1]] = found.samples[indices[0]] if same else _sample(stored[1], looks, 1)
        if len(stored) > 2:
            looks = self._compared([base, stored[2]], [indices[0], indices[2]])
            found.rows_as_stored = self._changes(expert, looks)
        return found

    def _compared(self, stored: Sequence[Weights], indices: Sequence[tuple[int, int]]) -> Looks:
        """A look at each tensor of an expert, and at its counterpart where there is one."""
        refs = [self._refs(side, index) for side, index in indices]
        return {
            pair[0].role: compared(self.sides, pair, [weights[pair[0].role] for weights in stored])
            for pair in zip(*refs, strict=True)
        }

    def _refs(self, side: int, expert: int) -> tuple[TensorRef, ...]:
        """The tensors of an expert of one checkpoint, by its own index there."""
        return expert_refs(self._layers[side].routed, expert)

    def _changes(self, expert: int, looks: Looks) -> list[TensorChange]:
        layer = self._layers[0].index
        return [looks[ref.role].change(ref.name, ref.kind, layer, expert) for ref in self._refs(0, expert)]

    def _find_relabelling(self) -> Tensor | None:
        rows = [
            router_rows(side.resident, layer) for side, layer in zip(self.sides, self._layers, strict=True)
        ]
        if not may_be_relabelled(*rows):
            return None
        for side in self.sides:
            side.reader.again = True
        mine = {
            (side, expert): sketch(list(self._stored(side, expert).values()))
            for side in range(2)
            for expert in self._group.share(self.count)
        }
        found = {key: row_N for part in self._group.gather(mine) for key, row_N in part.items()}
        base_EN, tuned_EN = (_stacked([found[side, e] for e in range(self.count)]) for side in range(2))
        return relabelling(rows[0], rows[1], base_EN, tuned_EN)


def _sample(weights: Weights, looks: Looks, side: int) -> Sample:
    matrices = [role for role, tensor in weights.items() if tensor.dim() == 2]
    return Sample(
        sketch(list(weights.values())),
        bool(weights)
        and looks_initialised(
            [weights[role] for role in matrices], [looks[role].squares_of_rows(side) for role in matrices]
        ),
        any(looks[role].zeroed(side) for role in matrices),
    )


def _stacked(rows: list[Tensor]) -> Tensor:
    """Sketches, float32 [E, N]; zeros for an expert without matrices."""
    width = max(len(row_N) for row_N in rows)
    return torch.stack([torch.nn.functional.pad(row_N, (0, width - len(row_N))) for row_N in rows])


def router_rows(resident: Weights, layer: LayerSpec) -> RouterRows:
    """The router's rows and biases of one checkpoint, as stored."""
    router = layer.routed.router
    refs = [r for r in layer.refs if r.role not in (ROUTER_GAIN, ROUTER_TABLE)]
    rows = [resident[r.role].float() for r in refs if r.kind == "router" and len(r.shape) == 2]
    biases = [
        resident[r.role].float().reshape(-1)
        for r in refs
        if r.kind == "selection_bias" or (r.kind == "router" and len(r.shape) == 1)
    ]
    groups = router.groups if router.kept_groups < router.groups else None
    return RouterRows(torch.cat(rows, dim=1), tuple(biases), groups)


def _equal(first: Weights, second: Weights) -> bool:
    return all(same_values(tensor, second[role]) for role, tensor in first.items())
