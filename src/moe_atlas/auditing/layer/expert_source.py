"""The routed experts of one layer as each checkpoint stores them, and the relabelling between both numberings.

Legend: E experts, N sketch elements, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moe_atlas.auditing.layer.side import Side, Weights
from moe_atlas.auditing.processes.group import Group
from moe_atlas.geometry.chart_maps import overlap_map
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.names import ROUTER_GAIN, ROUTER_TABLE
from moe_atlas.models.spec import LayerSpec, TensorRef
from moe_atlas.weights.identity import RouterRows, may_be_relabelled, relabelling, repeated, sketch
from moe_atlas.weights.values import same_values


class ExpertSource:
    """The stored experts of one layer of every checkpoint under audit.

    A checkpoint's number is its place in `sides`: 0 for the base, 1 for the tuned checkpoint.

    Args:
        sides: the checkpoints under audit.
        layers: their specs of this layer.
        group: the processes that share the audit; each sketches its share of the experts.

    Attributes:
        count: number of experts.
        match_E: the consistent relabelling, int64 (tuned index of each base expert); None if there is none.
    """

    def __init__(self, sides: Sequence[Side], layers: Sequence[LayerSpec], group: Group) -> None:
        self.sides, self._layers = sides, layers
        self.layer = layers[0].index
        self.count = layers[0].routed.router.experts
        self.match_E = self._find_relabelling(group) if len(sides) == 2 else None

    def stored_E(self, number: int) -> Tensor:
        """Return the index under which a checkpoint stores each base expert's counterpart, int64 [E]."""
        return torch.arange(self.count) if number == 0 or self.match_E is None else self.match_E

    def indices(self, expert: int) -> list[tuple[int, int]]:
        """Return (checkpoint, index in that checkpoint) of everything to read for a base expert.

        If a relabelling moved the counterpart, the last entry is the tuned expert stored under the base's index.
        """
        indices = [(number, int(self.stored_E(number)[expert])) for number in range(len(self.sides))]
        return indices if indices[-1][1] == expert else [*indices, (1, expert)]

    def read(self, number: int, expert: int) -> Weights:
        """Read the tensors of an expert as stored, by role, under the checkpoint's own index."""
        return self.sides[number].expert(self._layers[number], expert)

    def refs(self, number: int, expert: int) -> tuple[TensorRef, ...]:
        """Return references to the tensors of an expert, under the checkpoint's own index."""
        return expert_refs(self._layers[number].routed, expert)

    def stored_once(self, expert: int, index: int) -> bool:
        """Return whether the tuned expert `index` is the base's expert itself, which an adapter leaves as it is."""
        base, tuned = self.sides
        if base.transform is not None or tuned.transform is not None:
            return False
        return all(
            replace(own, name=other.name) == other
            and base.checkpoint.logical[own.stored] is tuned.checkpoint.logical[other.stored]
            for own, other in zip(self.refs(0, expert), self.refs(1, index), strict=True)
        )

    def clones(self, number: int, sketches_EN: Tensor) -> list[list[int]]:
        """Return groups of experts that hold the same values; equal sketches suggest them, whole tensors confirm."""
        confirmed = []
        for group in repeated(sketches_EN):
            first = self.read(number, group[0])
            if not first:  # identity experts are equal by design
                continue
            same = [e for e in group[1:] if equal_weights(first, self.read(number, e))]
            if same:
                confirmed.append([group[0], *same])
        return confirmed

    def chart_maps(self, number: int, samples: int) -> list[dict[str, Any]]:
        """Return the overlap map facts (Eq. 13) of `samples` pairs of neighbouring experts: rank of W1, condition."""
        real = self.count - self._layers[number].routed.identity_experts
        step = max(1, real // samples)
        pairs = [(e, (e + 1) % real) for e in range(0, real, step)][:samples]
        return [
            {"from": a, "to": b, **overlap_map(self._w1(number, a), self._w1(number, b))} for a, b in pairs
        ]

    def _w1(self, number: int, expert: int) -> Tensor:
        """Return W1 of an expert; a gated expert has gate rows above up rows."""
        stored = self.read(number, expert)
        return torch.cat([stored[role] for role in ("gate_proj", "up_proj") if role in stored])

    def _find_relabelling(self, group: Group) -> Tensor | None:
        rows = self.router_rows()
        if not may_be_relabelled(*rows):
            return None
        for side in self.sides:
            side.reader.again = True
        mine = {
            (number, expert): sketch(list(self.read(number, expert).values()))
            for number in range(2)
            for expert in group.share(self.count)
        }
        found = {key: row_N for part in group.gather(mine) for key, row_N in part.items()}
        base_EN, tuned_EN = (
            stack_sketches([found[number, e] for e in range(self.count)]) for number in range(2)
        )
        return relabelling(rows[0], rows[1], base_EN, tuned_EN)

    def router_rows(self) -> list[RouterRows]:
        """Return the router's rows and biases of every checkpoint, from the layer's resident tensors."""
        return [
            _router_rows(side.resident, layer) for side, layer in zip(self.sides, self._layers, strict=True)
        ]


def stack_sketches(sketches: list[Tensor]) -> Tensor:
    """Stack sketches to float32 [E, N]; an expert without matrices has a row of zeros."""
    width = max(len(row_N) for row_N in sketches)
    return torch.stack([torch.nn.functional.pad(row_N, (0, width - len(row_N))) for row_N in sketches])


def equal_weights(first: Weights, second: Weights) -> bool:
    """Return whether two experts hold the same values."""
    return all(same_values(tensor, second[role]) for role, tensor in first.items())


def _router_rows(resident: Weights, layer: LayerSpec) -> RouterRows:
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
