"""One checkpoint of the pair as the audit walks through it: reader, replay, and the state of every batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from moe_atlas.checkpoint.index import Checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.families.spec import LayerSpec, ModelSpec, TensorRef
from moe_atlas.families.load import load_all
from moe_atlas.replay.model import Replay

Weights = dict[str, Tensor]


@dataclass
class Side:
    """A checkpoint under audit.

    Attributes:
        states: what each batch carries into the next layer, opaque to the audit.
        resident: tensors of the layer at hand, as stored, by role.
        weights: the same in the dtypes the replay multiplies in.
    """

    name: Literal["base", "tuned"]
    checkpoint: Checkpoint
    spec: ModelSpec
    replay: Replay
    reader: Reader
    states: list[Tensor] = field(default_factory=list)
    resident: Weights = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)

    def enter(self, refs: Iterable[TensorRef]) -> None:
        """Read the tensors of a layer (or of embedding or head), dropping those of the last one."""
        self.resident, self.weights = {}, {}
        self.resident = load_all(self.reader, refs)
        self.weights = self.replay.prepare(self.resident)

    def expert(self, layer: LayerSpec, expert: int) -> Weights:
        """The tensors of one routed expert, as stored, by role."""
        assert layer.moe is not None
        return load_all(self.reader, layer.moe.expert_refs(expert))

    def embed(self, batches: Iterable[Tensor]) -> None:
        """Start every batch from its tokens."""
        self.states = [self.replay.embed(self.weights, tokens_WS) for tokens_WS in batches]


def compute_dtype(name: str, spec: ModelSpec, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype matrix products run in: as asked, or for `auto` the dtype the checkpoint's head is stored in."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    stored = checkpoint.tensors[spec.embed_refs[0].stored].dtype
    return torch.bfloat16 if stored == "BF16" else torch.float32
