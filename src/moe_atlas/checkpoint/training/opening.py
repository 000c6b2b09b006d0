"""Choose how the tensors of a folder are read: a checkpoint in its final form, or one that a training wrote.

A training writes no configuration beside its tensors. It comes from the checkpoint that the user names beside it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moe_atlas.checkpoint import files, folders
from moe_atlas.checkpoint.detect import KEYS
from moe_atlas.checkpoint.files import FileStat
from moe_atlas.checkpoint.folders import INDEX
from moe_atlas.checkpoint.index import CONFIG, open_checkpoint, read_config
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.checkpoint.training.assembly import encoded
from moe_atlas.checkpoint.training.dcp import METADATA, read_dcp
from moe_atlas.checkpoint.training.hub_shards import SHARD, read_hub_shards
from moe_atlas.checkpoint.training.source import TrainingSource


def is_training_folder(path: Path) -> bool:
    """Return whether a path is a folder of pieces of tensors and holds no model in its final form."""
    names = _names(path)
    if INDEX in names or folders.own_weights(names):
        return False
    return any(SHARD.fullmatch(name) for name in names) or dcp_inside(path, names) is not None


def dcp_inside(path: Path, names: Collection[str]) -> str | None:
    """Return which folder inside holds a checkpoint of DCP, with a final ``/``; empty for the folder itself.

    Accelerate writes the model into ``pytorch_model_fsdp_0/``. A folder with a mark of another framework is none.
    """
    kind = folders.foreign_kind(names)
    if METADATA in names and kind is not None and kind.what == folders.DCP:
        return ""
    inner = sorted(name for name in names if fnmatchcase(name, "pytorch_model_fsdp_*"))
    whole = [name for name in inner if METADATA in _names(path / name) and not (path / name).is_symlink()]
    return f"{whole[0]}/" if len(whole) == 1 else None


def open_folder(path: Path, like: TensorSource | None = None) -> TensorSource:
    """Open a checkpoint: in its final form, or as a training wrote it.

    Args:
        path: any path that `open_checkpoint` takes, or the folder of a training checkpoint.
        like: the checkpoint whose configuration describes a training checkpoint without one of its own.

    Raises:
        InputRefused: as `open_checkpoint`; for a training checkpoint ``E_FORMAT`` without a configuration, and every
            code of `read_hub_shards` and `read_dcp`.
    """
    path = Path(path)
    if not is_training_folder(path) or (like is None and not files.exists(path / CONFIG)):
        return open_checkpoint(path)
    return open_training(path, like)


def open_training(path: Path, like: TensorSource | None) -> TrainingSource:
    """Open the folder of a training checkpoint from its headers or its metadata; see `open_folder`."""
    found: dict[str, FileStat] = {}
    names = _names(path)
    inside = dcp_inside(path, names)
    unread: Mapping[str, int] = {}
    if inside is None:
        joined = read_hub_shards(path, names, found, str(path))
    else:
        joined, unread = read_dcp(path, inside, found, str(path))
    config = _config(path, like, found)
    quantised = encoded(config, joined, str(path))
    return TrainingSource(
        path, str(path), config, joined.tensors, joined.pieces, MappingProxyType(found), quantised, unread
    )


def _config(path: Path, like: TensorSource | None, found: dict[str, FileStat]) -> dict[str, Any]:
    """Return the folder's own configuration, or else that of the other checkpoint.

    That one may be quantised. A training writes plain tensors, and so does an export of them without quantisation.
    """
    if like is None or files.exists(path / CONFIG):
        return read_config(path, found)
    return _plain(like.config)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in KEYS}


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
