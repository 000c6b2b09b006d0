"""The state file of an interrupted audit: JSON facts and tensors, streamed, with a digest at the end.

Layout: a magic line; the length of the JSON as 8 bytes, little-endian; the JSON; the bytes of the tensors in the order
of the JSON; the sha256 of everything before. Reading and writing need no more memory than the tensors themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from moe_atlas.errors import IntegrityError, out_of_memory
from moe_atlas.receipt.files import write_errors
from moe_atlas.system.atomic_write import on_disk, take_place
from moe_atlas.text import shown

MAGIC = b"atlas/resume/v2\n"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)
}
_DTYPES |= {"uint8": torch.uint8, "uint16": torch.uint16}
_DTYPES |= {"float64": torch.float64, "int32": torch.int32, "int64": torch.int64}


def write_state(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Replace the file; a crash leaves either the old file or the new file.

    Raises:
        ResourceExhausted: ``E_DISK`` when the disk is full.
        UsageError: ``E_WRITE`` when the folder cannot be written.
    """
    # The fixed name lets the next audit overwrite the unfinished file of a killed audit.
    temporary = path.with_name(path.name + ".tmp")
    with write_errors(path):
        with on_disk(temporary) as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
            _write(file, facts, tensors)
        take_place(temporary, path)


def _write(file: BinaryIO, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    table = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
    header = json.dumps({"facts": facts, "tensors": table}).encode("ascii")
    digest = hashlib.sha256()
    front: list[bytes | memoryview] = [MAGIC, len(header).to_bytes(8, "little"), header]
    for part in chain(front, map(_bytes, tensors.values())):
        digest.update(part)
        file.write(part)
    file.write(digest.digest())


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy().data)


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read facts and tensors.

    Raises:
        IntegrityError: ``E_RESUME`` if the bytes of the file do not match its digest.
    """
    damaged = IntegrityError("E_RESUME", shown(str(path)), "is damaged", "remove it to start anew")
    digest = hashlib.sha256()
    try:
        with _opened(path) as file:
            if _read(file, len(MAGIC), digest) != MAGIC:
                raise damaged
            length = int.from_bytes(_read(file, 8, digest), "little")
            if length > path.stat().st_size:
                raise damaged
            header = json.loads(_read(file, length, digest))
            tensors = {name: _tensor(file, dtype, shape, digest) for name, dtype, shape in header["tensors"]}
            if file.read(digest.digest_size + 1) != digest.digest():
                raise damaged
    # The file is a state and no receipt. Its digest is checked last, so damaged bytes may look like any header.
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        if out_of_memory(error):
            raise
        raise damaged from error
    facts: dict[str, Any] = header["facts"]
    return facts, tensors


def state_facts(path: Path) -> dict[str, Any] | None:
    """Read the facts of a state without its tensors and without a check; None if there is no readable state."""
    # The header of a state, which nothing has checked yet, may be damaged in any way.
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError), _opened(path) as file:
        if file.read(len(MAGIC)) == MAGIC:
            length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
            facts: dict[str, Any] = json.loads(file.read(length))["facts"]
            return facts
    return None


def _opened(path: Path) -> BinaryIO:
    """Open a state file without blocking, even if the path names a pipe."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def _read(file: BinaryIO, count: int, digest: Any) -> bytes:
    data = file.read(count)
    digest.update(data)
    return data


def _tensor(file: BinaryIO, dtype: str, shape: list[int], digest: Any) -> Tensor:
    kind = _DTYPES[dtype]
    if math.prod(shape) * kind.itemsize > os.fstat(file.fileno()).st_size:
        raise ValueError("cut short")
    tensor = torch.empty(shape, dtype=kind)
    buffer = _bytes(tensor)
    if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
        raise ValueError("cut short")
    digest.update(buffer)
    return tensor
