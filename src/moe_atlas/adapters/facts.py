"""What a receipt says about an adapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moe_atlas.adapters.source import AdaptedSource
from moe_atlas.checkpoint.digest import CheckpointDigest, combine, config_sha256
from moe_atlas.checkpoint.source import TensorSource


def adapter_facts(source: TensorSource, digest: CheckpointDigest) -> dict[str, Any] | None:
    """Return the facts of an adapter and of its base within it; None for a source without an adapter.

    Args:
        source: an opened source.
        digest: the digests of its stored tensors.
    """
    found = matched_facts(source)
    if found is None or not isinstance(source, AdaptedSource):
        return None
    return {
        **found,
        "digest": combine(source.adapter, digest.tensors).sha256,
        "base_digest": combine(source.base, digest.tensors).sha256,
    }


def matched_facts(source: TensorSource) -> dict[str, Any] | None:
    """Return what an adapter does to its base, from headers and factors B; None for a source without an adapter."""
    if not isinstance(source, AdaptedSource):
        return None
    settings, found = source.settings, source.matched
    return {
        "path": source.adapter.label,
        "config_sha256": config_sha256(source.adapter),
        "as": source.reading,
        "modules": found.modules,
        "replaced": found.replaced,
        "tensors": len(found.derived),
        "ranks": sorted(found.ranks),
        "alphas": sorted(found.numerators),
        "rank_stabilised": settings.rank_stabilised,
        "dora": settings.dora,
        "packing": found.packing,
        "side": found.side,
        "peft_version": settings.version or None,
        "changes_nothing": source.changes_nothing(),
        "named_base": settings.base or None,
        "other_base": bool(settings.base) and not same_name(settings.base, source.base.label),
    }


def semantics(source: TensorSource) -> list[Any] | None:
    """Return what decides the meaning of an adapter's tensors beside their bytes; None without an adapter."""
    if not isinstance(source, AdaptedSource):
        return None
    return [source.adapter.config, source.reading, source.matched.packing, source.matched.side]


def same_name(named: str, path: str) -> bool:
    """Return whether a configuration names this folder: by its last part, or as a model in the hub's cache."""
    last = named.rstrip("/").rpartition("/")[2]
    parts = Path(path).resolve().parts
    cached = {part.rpartition("--")[2] for part in parts if re.match(r"models--", part)}
    cached |= {Path(named).name} if named in parts else set()
    return last in {parts[-1], *cached}
