"""The window data beside a receipt: named float64 and int32 arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.errors import IntegrityError
from moe_atlas.receipt.array_file import ArrayFile, Arrays
from moe_atlas.receipt.files import read_bounded
from moe_atlas.system.limits import MAX_WINDOW_BYTES
from moe_atlas.text import shown

WINDOW_FILE = ArrayFile("E_WINDOWS", {"F64": np.dtype("<f8"), "I32": np.dtype("<i4")})


def recorded_windows(path: Path, receipt: Mapping[str, Any]) -> Arrays:
    """Return the arrays that a verified receipt was derived from, under the name and with the digest it records.

    Args:
        path: the receipt, which may have been renamed since.
        receipt: its content.

    Raises:
        AtlasError: ``E_WINDOWS`` (IntegrityError) when the file is not the recorded one; whatever keeps it from being
            read.
    """
    beside = path.parent / receipt["evidence"]["windows"]
    raw = read_bounded(beside, MAX_WINDOW_BYTES)
    if hashlib.sha256(raw).hexdigest() != receipt["evidence"]["sha256"]:
        raise IntegrityError("E_WINDOWS", shown(str(beside)), "is not the window data that the receipt names")
    return decode_windows(raw, beside.name)


def encode_windows(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the bytes of the window file.

    Args:
        arrays: by name, in lower case and dots; float64 or int32, one or two dimensions.

    Raises:
        ValueError: for another dtype, rank or spelling; an internal mistake, not a user's.
    """
    return WINDOW_FILE.encode(arrays)


def decode_windows(raw: bytes, label: str) -> Arrays:
    """Return the arrays of a window file, read-only views of ``raw``.

    Raises:
        InputRefused: ``E_WINDOWS`` (or a code of the JSON reader) for anything `encode_windows` does not write.
    """
    return WINDOW_FILE.decode(raw, label)
