"""The digest of a checkpoint whose bytes several processes read and hashed, and the digest of any value."""

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
    """Hash the bytes that no process has read in order, and combine the hashes of all processes.

    Raises:
        IntegrityError: ``E_CHANGED`` if a file changed after it was opened.
    """
    positions = group.gather({name: position for name, (position, _) in reader.hashed().items()})
    owners = finishers(reader.checkpoint.tensors, positions)
    mine = reader.complete([name for name, rank in owners.items() if rank == group.rank])
    reader.unchanged()
    return combine(
        reader.checkpoint, {name: digest for part in group.gather(mine) for name, digest in part.items()}
    )


def finishers(tensors: Mapping[str, StoredTensor], positions: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Assign the hash of each tensor to a process: one that has hashed it whole, else so that the work is even.

    Args:
        tensors: the stored tensors by name.
        positions: for each process, the number of bytes hashed so far by tensor name.
    """
    loads = [0] * len(positions)
    owners: dict[str, int] = {}
    for name, tensor in tensors.items():
        left = [tensor.nbytes - seen.get(name, 0) for seen in positions]
        # Processes cannot exchange a running sha256, so a process must read all bytes that it has not hashed itself.
        owners[name] = min(range(len(left)), key=lambda rank: (left[rank] > 0, loads[rank] + left[rank]))
        loads[owners[name]] += left[owners[name]]
    return owners


def digest_of(value: Any) -> str:
    """Return the sha256 of a tensor's bytes, or of a value as JSON, by which two processes or two runs compare it."""
    if isinstance(value, Tensor):
        return hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest()
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
