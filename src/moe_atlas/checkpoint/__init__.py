"""Checkpoints on disk: open them from their headers, read them in bounded pieces, digest the bytes that are read.

`open_checkpoint` and `digest_checkpoint` need no torch; `moe_atlas.checkpoint.reader` makes tensors.
"""

from __future__ import annotations

from moe_atlas.checkpoint.digest import CheckpointDigest, digest_checkpoint
from moe_atlas.checkpoint.files import FileStat
from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.index import Checkpoint, open_checkpoint
from moe_atlas.checkpoint.source import TensorSource

__all__ = [
    "Checkpoint",
    "CheckpointDigest",
    "FileStat",
    "StoredTensor",
    "TensorSource",
    "digest_checkpoint",
    "open_checkpoint",
]
