"""From paths to sources of tensors: a folder, a training checkpoint, or a base and an adapter of it."""

from __future__ import annotations

from pathlib import Path

from moe_atlas.adapters.source import open_adapter
from moe_atlas.checkpoint.index import is_adapter, open_checkpoint
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.checkpoint.training.opening import open_folder
from moe_atlas.errors import UsageError
from moe_atlas.loading.registry import resolve
from moe_atlas.models.spec import ModelSpec
from moe_atlas.options import AuditOptions

Given = Path | TensorSource


def open_pair(
    base: Given, tuned: Given | None, options: AuditOptions
) -> tuple[list[TensorSource], list[ModelSpec]]:
    """Open one or two checkpoints from their headers; return the sources and their specs, base first.

    Args:
        base: the base checkpoint: its path, or the source of its tensors.
        tuned: the tuned checkpoint, which may be a training checkpoint, or the folder of an adapter of the base; None
            without one. The base's configuration describes a training checkpoint without one of its own.
        options: options of how the audit runs.

    Raises:
        AtlasError: for a checkpoint or an adapter that is not read; ``E_ADAPTER`` (UsageError) for a layout of an
            adapter without one.
    """
    like = None if options.like is None else open_checkpoint(options.like)
    sources = [_opened(base, like)]
    specs = [resolve(sources[0], options.accepted)]
    adapter = tuned if isinstance(tuned, Path) and is_adapter(tuned) else None
    if adapter is not None:
        sources.append(
            open_adapter(sources[0], specs[0], adapter, options.adapter_as, options.adapter_layout)
        )
    elif options.adapter_layout:
        problem = "the tuned checkpoint is no adapter"
        raise UsageError("E_ADAPTER", "--adapter-layout", problem, "leave the option out")
    elif tuned is not None:
        sources.append(_opened(tuned, sources[0]))
    return sources, specs + [resolve(source, options.accepted) for source in sources[1:]]


def _opened(given: Given, like: TensorSource | None) -> TensorSource:
    return open_folder(given, like) if isinstance(given, Path) else given
