"""Where the base stores what an adapter names: modules of the model's class onto stored tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property

from moe_atlas.checkpoint.source import Logical
from moe_atlas.loading.bind import AROUND, PREFIXES
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.spec import LayerSpec, ModelSpec, TensorRef

RENAMED = (
    (".mlp.router.", ".block_sparse_moe.gate."),
    (".mlp.", ".block_sparse_moe."),
    (".router.", ".router.layer."),
    (".shared_experts.", ".shared_expert."),
    (".shared_experts.", ".shared_mlp."),
    (".gate.", ".router.gate."),
    (".forget_gate.", "."),
    ("model.", "backbone."),
)
"""Parts of names in classes of transformers 5, and the parts that stand there in stored names."""
_EXPERTS = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)\.(?:.+\.)?experts$")


class Targets:
    """The tensors of a base by every name that an adapter may use for them.

    Args:
        logical: the base's tensors as they are meant.
        spec: the base's spec.
    """

    def __init__(self, logical: Mapping[str, Logical], spec: ModelSpec) -> None:
        self.logical, self.spec = logical, spec

    def find(self, parameter: str) -> TensorRef | None:
        """Return where a parameter of the class is stored; None where the base has no such tensor.

        A tensor that the spec does not use is found by its stored name alone.
        """
        if self.spec.tied and parameter.endswith("lm_head.weight"):
            return next(ref for ref in self.spec.final_refs if ref.role == "head")
        for name in _spellings(parameter):
            ref = self._refs.get(name)
            if ref is not None:
                return ref
            if name in self.logical:
                return TensorRef(name, "other", tuple(self.logical[name].shape), name, name)
        return None

    def experts_of(self, module: str) -> LayerSpec | None:
        """Return the routed layer whose stack of experts this module is; None for any other module."""
        found = _EXPERTS.search(module)
        layer = self._layers.get(int(found[1])) if found else None
        return layer if layer is not None and layer.moe is not None else None

    @cached_property
    def _layers(self) -> dict[int, LayerSpec]:
        return {layer.index: layer for layer in self.spec.layers}

    @cached_property
    def _refs(self) -> dict[str, TensorRef]:
        """Every replayed tensor by its stored name, where it is all of a stored tensor, and by its canonical name."""
        refs = list(self._replayed())
        stored = {
            ref.stored: ref for ref in refs if ref.index is None and ref.rows is None and ref.span is None
        }
        return stored | {ref.name: ref for ref in refs}

    def _replayed(self) -> Iterator[TensorRef]:
        yield from self.spec.final_refs
        yield from self.spec.embed_refs
        for layer in self.spec.layers:
            yield from layer.refs
            if layer.moe is not None:
                for expert in range(layer.moe.router.experts):
                    yield from expert_refs(layer.moe, expert)


def _spellings(name: str) -> Iterator[str]:
    """Yield a name as it stands and under every prefix and renaming, the plainest first."""
    plain = [name]
    plain += [
        "model." + name.removeprefix(prefix)
        for prefix in sorted(PREFIXES, key=len, reverse=True)
        if prefix and prefix != "model." and name.startswith(prefix)
    ]
    plain += [name.removeprefix(prefix) for prefix in AROUND if name.startswith(prefix)]
    yield from plain
    for one in plain:
        for own, stored in RENAMED:
            if own in f".{one}" or one.startswith(own):
                yield one.replace(own, stored, 1)
