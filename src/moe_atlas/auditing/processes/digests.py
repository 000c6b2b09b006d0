"""Digests that processes agree on: of a checkpoint whose bytes several of them read, and of any value.

Each process hashed the bytes it read, and finishes its part of a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from moe_atlas.auditing.processes.group import Group
from moe_atlas.checkpoint.digest import CheckpointDigest, combine
from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.reader import Reader


def finish(reader: Reader, group: Group) -> CheckpointDigest:
    """Hash what no process has read in order, and join what all of them hashed.

    Raises:
        IntegrityError: ``E_CHANGED`` when a file is no longer the one that was opened.
    """
    positions = group.gather({name: position for name, (position, _) in reader.hashed().items()})
    owners = finishers(reader.checkpoint.tensors, positions)
    mine = reader.complete([name for name, rank in owners.items() if rank == group.rank])
    reader.unchanged()
    return combine(
        reader.checkpoint, {name: digest for part in group.gather(mine) for name, digest in part.items()}
    )


def finishers(tensors: Mapping[str, StoredTensor], positions: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Which process finishes each tensor's hash: one that has seen it whole, else so that the bytes left are even.

    Args:
        tensors: the stored tensors by name.
        positions: for each process, how many of a tensor's bytes it has hashed, where any.
    """
    loads = [0] * len(positions)
    owners: dict[str, int] = {}
    for name, tensor in tensors.items():
        left = [tensor.nbytes - seen.get(name, 0) for seen in positions]
        # A sha256 cannot be handed on, so whoever finishes a tensor reads all that it has not seen itself.
        owners[name] = min(range(len(left)), key=lambda rank: (left[rank] > 0, loads[rank] + left[rank]))
        loads[owners[name]] += left[owners[name]]
    return owners


def digest_of(value: Any) -> str:
    """Return the sha256 of a tensor's bytes, or of a value as JSON, by which two processes or two runs compare it."""
    if isinstance(value, Tensor):
        return hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest()
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
