"""Digests of what a checkpoint's tensors say: of all that are replayed, and of each class in each layer.

They are over values and logical tensors, so a copy in another dtype, sharding or layout of experts has the same, while
the digest of the stored tensors (`moe_atlas.checkpoint.digest`) is another one. The one of the whole checkpoint answers
yes or no; a run that was resumed after a crash needs to know which part is not what it was, long after the older
checkpoint's bytes are gone.
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

Place = tuple[str, int | None]
Values = Mapping[str, str]  # a tensor's canonical name to the digest of its values
OTHER: Place = ("other", None)


def resolved(
    found: Mapping[str, str | None],
    base: Values,
    spec: ModelSpec,
    checkpoint: TensorSource,
    digest: CheckpointDigest,
) -> dict[str, str]:
    """Digests of the values of one checkpoint's tensors by name, in which nothing refers to other ones any more.

    Args:
        found: what the weights ledger says of each: a digest, `AS_STORED`, or None where it holds the base's values.
        base: those of the base; empty for the base itself.
        spec: of the checkpoint.
        checkpoint: whose stored tensors.
        digest: theirs.
    """
    stored = {ref.name: ref.stored for ref, _ in replayed(spec)}
    stored |= {skipped.name: skipped.name for skipped in spec.skipped}

    def value(name: str, said: str | None) -> str:
        if said == AS_STORED:
            return f"{checkpoint.tensors[stored[name]].dtype} {digest.tensors[stored[name]]}"
        return base[name] if said is None else said

    return {name: value(name, said) for name, said in found.items()}


def value_digests(spec: ModelSpec, checkpoint: TensorSource, values: Values) -> dict[str, Any]:
    """Return ``values_digest``, over every tensor that is replayed, and ``classes``, one row for each class and layer.

    A digest is over one line ``name TAB dtype TAB shape TAB sha256 NEWLINE`` for each logical tensor, sorted by name:
    the name that a plain checkpoint with one tensor for each expert gives it, and what
    `moe_atlas.weights.values.ValueHash` says. A head that is tied to the embedding, or holds its values, counts once,
    as the embedding.

    Returns:
        The rows are objects of ``class``, ``layer`` (null outside the layers), ``tensors`` and ``values``; those that
        nothing replays and a server may use are in the row ``other``, outside the layers, and not in
        ``values_digest``.
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
    rows: dict[Place, list[bytes]] = {}
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
    """Every logical tensor that is replayed, with its layer; a tied head is the embedding."""
    for ref in (*spec.embed_refs, *(ref for ref in spec.final_refs if ref.kind != "embedding")):
        yield ref, None
    for layer in spec.layers:
        for ref in layer.refs:
            yield ref, layer.index
        if layer.moe is not None:
            for expert in range(layer.moe.router.experts):
                for ref in expert_refs(layer.moe, expert):
                    yield ref, layer.index
