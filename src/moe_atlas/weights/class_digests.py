"""One digest for each class of tensors in each layer: are two checkpoints the same experts, router and biases?

The digest of a whole checkpoint answers yes or no; a run that was resumed after a crash needs to know which part
is not what it was, long after the older checkpoint's bytes are gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moe_atlas.checkpoint.digest import CheckpointDigest, manifest_line
from moe_atlas.checkpoint.index import Checkpoint
from moe_atlas.families.spec import ModelSpec, TensorRef

Place = tuple[str, int | None]
OTHER: Place = ("other", None)


def class_digests(spec: ModelSpec, checkpoint: Checkpoint, digest: CheckpointDigest) -> list[dict[str, Any]]:
    """Return one row for each tensor class of each layer.

    Returns:
        Objects of ``class``, ``layer`` (null outside the layers), ``tensors`` (stored ones) and ``sha256``, over the
        same line for each tensor as the checkpoint's own digest; every stored tensor is in exactly one row, those
        that nothing replays under ``other``.
    """
    places: dict[str, Place] = {}
    for name, place in _places(spec):
        encoded = checkpoint.encoded.get(name)
        places |= dict.fromkeys([name] if encoded is None else encoded.parts.values(), place)
    rows: dict[Place, list[bytes]] = {}
    for name in sorted(checkpoint.tensors):
        line = manifest_line(checkpoint.tensors[name], digest.tensors[name])
        rows.setdefault(places.get(name, OTHER), []).append(line)
    return [
        {
            "class": kind,
            "layer": layer,
            "tensors": len(lines),
            "sha256": hashlib.sha256(b"".join(lines)).hexdigest(),
        }
        for (kind, layer), lines in rows.items()
    ]


def _places(spec: ModelSpec) -> Iterator[tuple[str, Place]]:
    """Class and layer of every stored tensor that is replayed; the embedding wins over a head tied to it."""
    yield from _stored(spec.final_refs, None)
    yield from _stored(spec.embed_refs, None)
    for layer in spec.layers:
        yield from _stored(layer.refs, layer.index)
        if layer.moe is not None:
            for expert in range(layer.moe.router.experts):
                yield from _stored(layer.moe.expert_refs(expert), layer.index)


def _stored(refs: Sequence[TensorRef], layer: int | None) -> Iterator[tuple[str, Place]]:
    for ref in refs:
        yield ref.stored, (ref.kind, layer)


def same_classes(
    earlier: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Compare the rows of two checkpoints, class by class.

    Returns:
        Objects of ``class``, ``same`` and ``changed_layers`` (null stands for outside the layers).
    """
    before, after = (
        {(row["class"], row["layer"]): (row["tensors"], row["sha256"]) for row in rows}
        for rows in (earlier, now)
    )
    places = sorted({*before, *after}, key=lambda place: (place[0], -1 if place[1] is None else place[1]))
    changed: dict[str, list[int | None]] = {kind: [] for kind, _ in places}
    for place in places:
        if before.get(place) != after.get(place):
            changed[place[0]].append(place[1])
    return [{"class": kind, "same": not layers, "changed_layers": layers} for kind, layers in changed.items()]
