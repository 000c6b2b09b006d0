"""Digests of the values of a checkpoint's tensors: one over all replayed tensors, and one per class and layer.

These digests cover values of logical tensors, so a copy in another dtype, sharding or expert layout has equal digests.
The digest of the stored tensors (`moe_atlas.checkpoint.digest`) differs for such a copy. The digest of the whole
checkpoint only answers whether two checkpoints are equal. A run resumed after a crash needs to know which part differs,
long after the bytes of the older checkpoint are gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from moe_atlas.checkpoint.digest import CheckpointDigest
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.spec import ModelSpec, TensorRef
from moe_atlas.probes.settings.policy import UNREPLAYED
from moe_atlas.weights.comparison import AS_STORED

ClassOfLayer = tuple[str, int | None]
Values = Mapping[str, str]  # canonical name of a tensor to the digest of its values
OTHER: ClassOfLayer = ("other", None)


def resolve_values(
    found: Mapping[str, str | None],
    base: Values,
    spec: ModelSpec,
    checkpoint: TensorSource,
    digest: CheckpointDigest,
) -> dict[str, str]:
    """Return the digest of the values of every tensor of a checkpoint, by name, with all references resolved.

    Args:
        found: the ledger's entry of each tensor: a digest, `AS_STORED`, or None for a tensor with the base's values.
        base: digests of the base's values; empty for the base itself.
        spec: spec of the checkpoint.
        checkpoint: the opened checkpoint.
        digest: digests of its stored tensors.
    """
    stored = {ref.name: ref.stored for ref, _ in replayed(spec)}
    stored |= {skipped.name: skipped.name for skipped in spec.skipped}

    def value(name: str, entry: str | None) -> str:
        if entry == AS_STORED:
            return f"{checkpoint.tensors[stored[name]].dtype} {digest.tensors[stored[name]]}"
        return base[name] if entry is None else entry

    return {name: value(name, entry) for name, entry in found.items()}


def value_digests(spec: ModelSpec, checkpoint: TensorSource, values: Values) -> dict[str, Any]:
    """Return ``values_digest`` over all replayed tensors, and ``classes`` with one row per class and layer.

    A digest covers one line ``name TAB dtype TAB shape TAB sha256 NEWLINE`` per logical tensor, sorted by name. The
    name is that of a plain checkpoint with one tensor per expert. `moe_atlas.weights.values.ValueHash` gives dtype and
    sha256. A head that is tied to the embedding, or holds the same values, counts only once, as the embedding.

    Returns:
        Rows are objects with ``class``, ``layer`` (null outside the layers), ``tensors`` and ``values``. The row
        ``other``, outside the layers, covers tensors that the replay skips and a server may use; ``values_digest``
        leaves them out.
    """
    embedding = values[spec.embed_refs[0].name]
    places = {
        ref.name: (ref.shape, (ref.kind, layer))
        for ref, layer in replayed(spec)
        if ref.kind != "head" or values[ref.name] != embedding
    }
    others = {
        skipped.name: (checkpoint.logical[skipped.name].shape, OTHER)
        for skipped in spec.skipped
        if skipped.part in UNREPLAYED
    }
    lines = {name: _line(name, shape, values[name]) for name, (shape, _) in sorted((places | others).items())}
    rows: dict[ClassOfLayer, list[bytes]] = {}
    for name, line in lines.items():
        rows.setdefault((places.get(name) or others[name])[1], []).append(line)
    return {
        "values_digest": _sha256(line for name, line in lines.items() if name in places),
        "classes": [
            {"class": kind, "layer": layer, "tensors": len(found), "values": _sha256(found)}
            for (kind, layer), found in rows.items()
        ],
    }


def _line(name: str, shape: Sequence[int], value: str) -> bytes:
    dtype, sha256 = value.split(" ")
    return f"{name}\t{dtype}\t[{','.join(map(str, shape))}]\t{sha256}\n".encode()


def _sha256(lines: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(lines)).hexdigest()


def replayed(spec: ModelSpec) -> Iterator[tuple[TensorRef, int | None]]:
    """Yield every replayed logical tensor with its layer; a tied head counts as the embedding."""
    for ref in (*spec.embed_refs, *(ref for ref in spec.final_refs if ref.kind != "embedding")):
        yield ref, None
    for layer in spec.layers:
        for ref in layer.refs:
            yield ref, layer.index
        if layer.moe is not None:
            for expert in range(layer.moe.router.experts):
                for ref in expert_refs(layer.moe, expert):
                    yield ref, layer.index
