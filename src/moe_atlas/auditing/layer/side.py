"""One checkpoint under audit during the walk: reader, replay, resident tensors, and the state of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from moe_atlas.auditing.layer.prefetch import reader_thread
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.loading.load import ReaderLike, Transform, load_all
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.names import ROUTER_GAIN, ROUTER_TABLE
from moe_atlas.models.spec import LayerSpec, ModelSpec, TensorRef
from moe_atlas.replay.model import Replay
from moe_atlas.weights.values import same_values

Weights = dict[str, Tensor]
SideName = Literal["base", "tuned"]

# Classes of tensors that occur only in products in the compute dtype; router and norms keep their stored dtype.
MULTIPLIED = ("attention", "shared_expert", "dense_mlp")


@dataclass
class Side:
    """A checkpoint under audit.

    Attributes:
        name: `base` or `tuned`.
        checkpoint: the opened checkpoint.
        spec: its spec.
        replay: its forward pass.
        reader: the reader of its tensors.
        transform: what becomes of every tensor that the replay reads; None audits the checkpoint itself.
        states: residual state of each batch; empty for a batch of another process.
        resident: tensors of the current layer by role, in their stored dtype. After `share_equal`, a tensor with the
            values of the other checkpoint's tensor is that tensor.
        weights: the resident tensors in the dtypes of the replay.
        loader: the thread that reads its experts.
    """

    name: SideName
    checkpoint: TensorSource
    spec: ModelSpec
    replay: Replay
    reader: Reader
    transform: Transform | None = None
    states: list[Tensor] = field(default_factory=list)
    resident: Weights = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    loader: Executor = field(default_factory=reader_thread)
    _cast: set[str] = field(default_factory=set)

    def free(self) -> None:
        """Free the tensors of the current layer."""
        self.resident, self.weights = {}, {}

    def load(self, refs: Sequence[TensorRef], reader: ReaderLike) -> None:
        """Read the tensors of a layer, or of the final norm, and keep them resident."""
        self.resident = load_all(reader, refs, self.transform)
        self._cast = {ref.role for ref in refs if ref.kind in MULTIPLIED and len(ref.shape) > 1}
        self.weights = {role: self._placed(role, tensor) for role, tensor in self.resident.items()}

    def _placed(self, role: str, tensor: Tensor) -> Tensor:
        """Return a tensor on the compute device, in the dtype of its products."""
        placed = tensor.to(self.replay.device)
        return placed.to(self.replay.dtype) if role in self._cast else placed

    def share_equal(self, other: Side) -> None:
        """Replace each resident tensor by the other checkpoint's tensor if both hold the same values.

        Norms and router compute in their stored dtype. With one shared tensor, equal values get the same arithmetic.
        """
        replays = [(side.replay.device, side.replay.dtype) for side in (self, other)]
        for role, tensor in self.resident.items():
            twin = other.resident.get(role)
            if twin is None or not same_values(twin, tensor):
                continue
            self.resident[role] = twin
            self.weights[role] = other.weights[role] if replays[0] == replays[1] else self._placed(role, twin)

    def renumber(self, layer: LayerSpec, match_E: Tensor) -> Weights:
        """Reorder router rows and biases to another checkpoint's expert order; return the stored tensors, by role."""
        roles = {ref.role for ref in layer.refs if ref.kind in ("router", "selection_bias")} - {ROUTER_GAIN}
        as_stored = {role: self.resident[role] for role in roles}
        for tensors in (self.resident, self.weights):
            for role in roles:
                tensors[role] = _renumbered(role, tensors[role], match_E.to(tensors[role].device))
        return as_stored

    def multiplied(self, stored: Weights) -> Weights:
        """Return an expert's tensors on the compute device, cast once to the compute dtype.

        Copies from page-locked memory are asynchronous on the current stream; the memory must stay unchanged until
        they are done.
        """
        device, dtype = self.replay.device, self.replay.dtype
        return {role: tensor.to(device, non_blocking=True).to(dtype) for role, tensor in stored.items()}

    def expert(self, layer: LayerSpec, expert: int) -> Weights:
        """Read the tensors of one routed expert in their stored dtype, by role."""
        return load_all(self.reader, expert_refs(layer.routed, expert), self.transform)

    def vocabulary_rows(self, stored: Tensor, ref: TensorRef, rows: range) -> Tensor:
        """Return some rows of the embedding or head, [C, D], from the rows as stored."""
        return stored if self.transform is None else self.transform(stored, ref, rows)


def _renumbered(role: str, tensor: Tensor, match_E: Tensor) -> Tensor:
    """Renumber a tensor of the router, so that expert `match_E[e]` becomes e; a lookup table holds expert indices."""
    if role == ROUTER_TABLE:
        return torch.argsort(match_E).to(tensor.dtype)[tensor.long()]
    return tensor.index_select(tensor.shape.index(len(match_E)), match_E)


def compute_dtype(name: str, spec: ModelSpec, checkpoint: TensorSource) -> torch.dtype:
    """Return the dtype of matrix products: the requested dtype or, for `auto`, the stored dtype of the embedding."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    stored = checkpoint.logical[spec.embed_refs[0].stored]
    plain = getattr(stored, "dtype", "BF16")  # quantisers start from bfloat16
    return torch.bfloat16 if plain == "BF16" else torch.float32
