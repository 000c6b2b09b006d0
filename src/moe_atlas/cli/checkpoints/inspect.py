"""`atlas inspect`: describe a checkpoint from its headers alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import typer

from moe_atlas.cli.common import options as o
from moe_atlas.errors import UsageError

if TYPE_CHECKING:
    from moe_atlas.checkpoint.source import TensorSource


def inspect(
    checkpoint: o.Checkpoint,
    like: o.Like = None,
    accept: o.Accept = None,
    adapter_layout: o.AdapterLayout = None,
    as_json: o.AsJson = False,
) -> None:
    """Show family, layers, experts, dtypes and sizes, and what would be replayed and skipped.

    Reads headers and config.json only. An adapter is described as what it makes of its base, given with --like; so is a
    training checkpoint, which has no config.json.

    Example: atlas inspect base.ckpt
    """
    from moe_atlas.configuration.accepting import parse_accepted

    if adapter_layout and like is None:
        raise UsageError(
            "E_ADAPTER", "--adapter-layout", "the checkpoint is no adapter", "leave the option out"
        )
    found = facts(checkpoint, parse_accepted(accept or ()), like, o.layouts(adapter_layout))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        draw(found)


def facts(
    path: Path,
    accepted: Mapping[str, Any] = MappingProxyType({}),
    like: Path | None = None,
    layout: Sequence[str] = (),
) -> dict[str, Any]:
    """Return all facts of `atlas inspect` as JSON values.

    Args:
        path: the checkpoint, a training checkpoint, or an adapter.
        accepted: keys of config.json that may have these values although nothing reads them.
        like: the base of an adapter, or the checkpoint whose configuration describes a training checkpoint.
        layout: readings of an adapter's stacks of experts.
    """
    from moe_atlas.adapters.facts import matched_facts
    from moe_atlas.adapters.source import open_adapter
    from moe_atlas.checkpoint.index import open_checkpoint
    from moe_atlas.checkpoint.training.opening import is_training_folder, open_folder
    from moe_atlas.checkpoint.training.source import TrainingSource
    from moe_atlas.configuration.accepting import written
    from moe_atlas.loading.registry import resolve

    beside = None if like is None else open_checkpoint(like)
    adapter = beside is not None and not is_training_folder(path)
    checkpoint: TensorSource
    if beside is not None and adapter:
        checkpoint = open_adapter(beside, resolve(beside, accepted), path, layouts=layout)
    else:
        checkpoint = open_folder(path, beside)
    spec = resolve(checkpoint, accepted)
    routed = [layer for layer in spec.layers if layer.moe]
    moe = routed[0].moe if routed else None
    stored = checkpoint.tensors.values()
    dtypes = Counter(dict.fromkeys(sorted({t.dtype for t in stored}), 0))
    for tensor in stored:
        dtypes[tensor.dtype] += tensor.nbytes
    skipped = Counter(skipped.reason for skipped in spec.skipped)
    shared = sum(math.prod(ref.shape) for layer in spec.layers for ref in layer.refs)
    return {
        "path": checkpoint.label,
        "family": spec.family,
        "width": spec.width,
        "vocabulary": spec.vocab,
        "layers": len(spec.layers),
        "routed_layers": spec.routed_layers,
        "experts": moe.router.experts if moe else None,
        "experts_per_token": moe.router.top_k if moe else None,
        "expert_width": moe.expert_width if moe else None,
        "router": moe.describe()["router"] if moe else None,
        "tensors": len(checkpoint.tensors),
        "shards": len(
            checkpoint.shards
            if isinstance(checkpoint, TrainingSource)
            else {tensor.file for tensor in stored}
        ),
        "bytes": sum(tensor.nbytes for tensor in stored),
        "bytes_by_dtype": dict(dtypes),
        "quantised": dict(Counter(entry.encoding.kind for entry in checkpoint.encoded.values())),
        "shared_parameters": shared,
        "skipped": dict(skipped),
        "accepted_config_keys": written(spec.accepted),
        **({"unread": dict(checkpoint.unread)} if isinstance(checkpoint, TrainingSource) else {}),
        **({"adapter": matched_facts(checkpoint)} if adapter else {}),
    }


def draw(found: dict[str, Any]) -> None:
    """Print a short table."""
    from rich.console import Console
    from rich.table import Table

    from moe_atlas.report.words import adapter
    from moe_atlas.text import shown, size
    from moe_atlas.views.registered import AdapterFacts

    table = Table(show_header=False, title=shown(found["path"], 120), title_justify="left")
    routed = found["routed_layers"]
    rows = [
        ("family", found["family"]),
        ("layers", f"{found['layers']}, of which {len(routed)} routed"),
        ("width, vocabulary", f"{found['width']}, {found['vocabulary']}"),
        (
            "experts",
            f"{found['experts']}, {found['experts_per_token']} per token, width {found['expert_width']}",
        ),
        ("stored", f"{found['tensors']} tensors, files: {found['shards']}, {size(found['bytes'])}"),
        *((f"  as {name}", size(count)) for name, count in found["bytes_by_dtype"].items()),
        *(("quantised", f"{count} tensors as {name}") for name, count in found["quantised"].items()),
        *(("left unread", f"{count} entries: {what}") for what, count in found.get("unread", {}).items()),
        *([("adapter", adapter(AdapterFacts(found["adapter"])))] if "adapter" in found else []),
        ("replayed", "all layers" if not found["skipped"] else "all but what is skipped"),
        *(("skipped", f"{count} tensors: {reason}") for reason, count in found["skipped"].items()),
        *(
            ("accepted", f"{one['key']} = {one['value']}: nothing reads it")
            for one in found["accepted_config_keys"]
        ),
    ]
    for name, value in rows:
        table.add_row(name, shown(str(value), 200))
    console = Console(highlight=False, markup=False)
    console.print(table)
    if found["router"]:
        router = ", ".join(f"{key} {value}" for key, value in found["router"].items())
        console.print(f"router: {shown(router, 600)}")
