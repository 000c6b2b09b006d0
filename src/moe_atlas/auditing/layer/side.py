"""One checkpoint of the pair as the audit walks through it: reader, replay, and the state of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from moe_atlas.auditing.layer.prefetch import reading
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.loading.load import ReaderLike, load_all
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.names import ROUTER_GAIN, ROUTER_TABLE
from moe_atlas.models.spec import LayerSpec, ModelSpec, TensorRef
from moe_atlas.replay.model import Replay
from moe_atlas.weights.values import same_values

Weights = dict[str, Tensor]
SideName = Literal["base", "tuned"]

# Tensors that only ever meet a matrix product in the compute dtype; router and norms keep theirs.
MULTIPLIED = ("attention", "shared_expert", "dense_mlp")


@dataclass
class Side:
    """A checkpoint under audit.

    Attributes:
        states: what each batch carries into the next layer, opaque to the audit; empty where another process
            holds it.
        resident: tensors of the layer at hand, by role: as stored, and once the audit has settled them the other
            checkpoint's own where the values are the same.
        weights: the same in the dtypes the replay multiplies in.
        loader: the thread that reads its experts.
    """

    name: SideName
    checkpoint: TensorSource
    spec: ModelSpec
    replay: Replay
    reader: Reader
    states: list[Tensor] = field(default_factory=list)
    resident: Weights = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    loader: Executor = field(default_factory=reading)
    _cast: set[str] = field(default_factory=set)

    def leave(self) -> None:
        """Drop the tensors of the layer at hand."""
        self.resident, self.weights = {}, {}

    def enter(self, refs: Sequence[TensorRef], reader: ReaderLike) -> None:
        """Read the tensors of a layer, or of what stands in front of the head."""
        self.resident = load_all(reader, refs)
        self._cast = {ref.role for ref in refs if ref.kind in MULTIPLIED and len(ref.shape) > 1}
        self.weights = {role: self._placed(role, tensor) for role, tensor in self.resident.items()}

    def _placed(self, role: str, tensor: Tensor) -> Tensor:
        """A tensor of the layer where and in the dtype it is multiplied in."""
        placed = tensor.to(self.replay.device)
        return placed.to(self.replay.dtype) if role in self._cast else placed

    def settle(self, other: Side) -> None:
        """Hold the other checkpoint's own tensor wherever this one's has the same values in other bytes, or the same.

        Norms and router follow the dtype that they are stored in; so equal values go through the same arithmetic.
        """
        replays = [(side.replay.device, side.replay.dtype) for side in (self, other)]
        for role, tensor in self.resident.items():
            twin = other.resident.get(role)
            if twin is None or not same_values(twin, tensor):
                continue
            self.resident[role] = twin
            self.weights[role] = other.weights[role] if replays[0] == replays[1] else self._placed(role, twin)

    def renumber(self, layer: LayerSpec, match_E: Tensor) -> Weights:
        """Put router rows and biases in another checkpoint's expert order; return them as stored, by role."""
        roles = {ref.role for ref in layer.refs if ref.kind in ("router", "selection_bias")} - {ROUTER_GAIN}
        as_stored = {role: self.resident[role] for role in roles}
        for tensors in (self.resident, self.weights):
            for role in roles:
                tensors[role] = _renumbered(role, tensors[role], match_E.to(tensors[role].device))
        return as_stored

    def multiplied(self, stored: Weights) -> Weights:
        """An expert's tensors where and in the dtype they are multiplied in: cast once, not at every product.

        Copies from page-locked memory have only begun, on the current stream: it must not change until they are done.
        """
        device, dtype = self.replay.device, self.replay.dtype
        return {role: tensor.to(device, non_blocking=True).to(dtype) for role, tensor in stored.items()}

    def expert(self, layer: LayerSpec, expert: int) -> Weights:
        """The tensors of one routed expert, as stored, by role."""
        return load_all(self.reader, expert_refs(layer.routed, expert))


def _renumbered(role: str, tensor: Tensor, match_E: Tensor) -> Tensor:
    """A tensor of the router whose expert e becomes that of `match_E[e]`; a table holds numbers of experts."""
    if role == ROUTER_TABLE:
        return torch.argsort(match_E).to(tensor.dtype)[tensor.long()]
    return tensor.index_select(tensor.shape.index(len(match_E)), match_E)


def compute_dtype(name: str, spec: ModelSpec, checkpoint: TensorSource) -> torch.dtype:
    """The dtype matrix products run in: as asked, or for `auto` the dtype the checkpoint's head is stored in."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    stored = checkpoint.logical[spec.embed_refs[0].stored]
    plain = getattr(stored, "dtype", "BF16")  # a quantised embedding was made from bfloat16
    return torch.bfloat16 if plain == "BF16" else torch.float32
