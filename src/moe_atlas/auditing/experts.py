"""The routed experts of one layer, both checkpoints in lock-step, a few at a time.

What a layer's experts weigh decides how they are held: within `budget` bytes they stay for the next batch,
beyond it they are read again, so that memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_atlas.auditing.side import Side, Weights
from moe_atlas.auditing.storage import kept, storage
from moe_atlas.families.spec import LayerSpec
from moe_atlas.geometry.chart_maps import overlap_map
from moe_atlas.weights.identity import (
    RouterRows,
    looks_initialised,
    may_be_relabelled,
    relabelling,
    repeated,
    sketch,
)
from moe_atlas.weights.ledger import WeightsLedger, same_bytes


class LayerExperts:
    """Experts of one layer of every checkpoint under audit, numbered as in the base.

    Attributes:
        match_E: the consistent relabelling (tuned index of each base expert), or None.
        identical: whether every routed expert is byte-identical to its counterpart.
    """

    def __init__(
        self, sides: Sequence[Side], layers: Sequence[LayerSpec], ledger: WeightsLedger, budget: int
    ):
        self.sides, self._layers, self._ledger, self._budget = sides, layers, ledger, budget
        moe = layers[0].moe
        assert moe is not None
        self.count = moe.router.experts
        self._held: dict[tuple[int, int], Weights] = {}
        self._held_bytes = 0
        self._sketches: list[dict[int, Tensor]] = [{} for _ in sides]
        self._initialised: list[set[int]] = [set() for _ in sides]
        self._entered: set[int] = set()
        self._latest: dict[int, tuple[int, Weights]] = {}
        self.identical = len(sides) == 2
        self.match_E = self._find_relabelling() if len(sides) == 2 else None

    def weights(self, side: int, expert: int) -> Weights:
        """Tensors of one expert in the dtypes the replay multiplies in, by role."""
        expert = int(self.stored(side)[expert])
        held = self._held.get((side, expert))
        if held is not None:
            return held
        latest = self._latest.get(side)
        stored = latest[1] if latest is not None and latest[0] == expert else self._stored(side, expert)
        prepared = self.sides[side].multiplied(stored)
        size = sum(tensor.nbytes for tensor in prepared.values())
        if self._held_bytes + size <= self._budget:
            self._held[side, expert] = prepared
            self._held_bytes += size
        return prepared

    def requantised(self, expert: int) -> Weights | None:
        """Base expert `expert` as the tuned checkpoint's format would keep it; None where both store alike."""
        formats = []
        for side in (0, 1):
            moe = self._layers[side].moe
            assert moe is not None
            refs = moe.expert_refs(int(self.stored(side)[expert]))
            formats.append(storage(self.sides[side].checkpoint, refs))
        if formats[0] == formats[1]:
            return None
        return self.sides[0].multiplied(kept(self._stored(0, expert), formats[1]))

    def enter(self, expert: int) -> None:
        """Bring expert `expert` of the base and its counterparts in, once per layer recording them in the ledger."""
        if expert in self._entered:
            return
        self._entered.add(expert)
        base = self._stored(0, expert)
        if len(self.sides) == 1:
            self._record(0, expert, base, None)
            return
        counterpart = int(self.stored(1)[expert])
        self._record(0, expert, base, self._stored(1, counterpart))
        if counterpart != expert:
            self._record(0, expert, base, self._stored(1, expert), as_stored=True)

    def stored(self, side: int) -> Tensor:
        """Index under which a checkpoint itself stores each expert, int64 [E]."""
        return torch.arange(self.count) if side == 0 or self.match_E is None else self.match_E

    def sketches(self, side: int) -> Tensor:
        """Sketches of all experts, float32 [E, N]; zeros for an expert without matrices."""
        rows = [self._sketches[side][expert] for expert in range(self.count)]
        width = max(len(row_N) for row_N in rows)
        return torch.stack([torch.nn.functional.pad(row_N, (0, width - len(row_N))) for row_N in rows])

    def initialised(self, side: int) -> list[int]:
        """Experts that look untrained."""
        return sorted(self._initialised[side])

    def clones(self, side: int) -> list[list[int]]:
        """Groups of experts that hold the same bytes: suggested by sketches, confirmed on the whole tensors."""
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
        moe = self._layers[side].moe
        assert moe is not None
        real = self.count - moe.identity_experts
        step = max(1, real // samples)
        pairs = [(e, (e + 1) % real) for e in range(0, real, step)][:samples]
        return [{"from": a, "to": b, **overlap_map(self._w1(side, a), self._w1(side, b))} for a, b in pairs]

    def _w1(self, side: int, expert: int) -> Tensor:
        """W1 of one expert: gate rows over up rows where gated."""
        stored = self._stored(side, expert)
        return torch.cat([stored[role] for role in ("gate_proj", "up_proj") if role in stored])

    def _stored(self, side: int, expert: int) -> Weights:
        tensors = self.sides[side].expert(self._layers[side], expert)
        self._latest[side] = (expert, tensors)
        if expert not in self._sketches[side]:
            matrices = list(tensors.values())
            self._sketches[side][expert] = sketch(matrices) if matrices else torch.zeros(0)
            if matrices and looks_initialised(matrices):
                self._initialised[side].add(expert)
        return tensors

    def _record(
        self, side: int, expert: int, base: Weights, tuned: Weights | None, *, as_stored: bool = False
    ) -> None:
        layer = self._layers[side]
        assert layer.moe is not None
        for ref in layer.moe.expert_refs(expert):
            other = None if tuned is None else tuned[ref.role]
            change = self._ledger.add(
                ref.name, ref.kind, layer.index, base[ref.role], other, as_stored=as_stored
            )
            self.identical &= bool(change.identical) or as_stored

    def _find_relabelling(self) -> Tensor | None:
        rows = [
            router_rows(side.resident, layer) for side, layer in zip(self.sides, self._layers, strict=True)
        ]
        if not may_be_relabelled(*rows):
            return None
        for side in range(2):
            for expert in range(self.count):
                self._stored(side, expert)
        return relabelling(rows[0], rows[1], self.sketches(0), self.sketches(1))


def router_rows(resident: Weights, layer: LayerSpec) -> RouterRows:
    """The router's rows and biases of one checkpoint, as stored."""
    assert layer.moe is not None
    router = layer.moe.router
    rows = [resident[r.role].float() for r in layer.refs if r.kind == "router" and len(r.shape) == 2]
    biases = [
        resident[r.role].float().reshape(-1)
        for r in layer.refs
        if r.kind == "selection_bias" or (r.kind == "router" and len(r.shape) == 1)
    ]
    groups = router.groups if router.kept_groups < router.groups else None
    return RouterRows(torch.cat(rows, dim=1), tuple(biases), groups)


def _equal(first: Weights, second: Weights) -> bool:
    return all(same_bytes(tensor, second[role]) for role, tensor in first.items())
