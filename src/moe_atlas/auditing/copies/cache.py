"""The user's cache of yardsticks: a file for each base, registration, machine and way of measuring.

The name of a file is the digest of everything that can change a bit of the yardstick, with the bytes of the base. So an
entry is the block that a measurement would give, or it is not found. The audit measures again where a file does not
hold together, and replaces the file. A cache that cannot be written changes nothing but the time of the next audit.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from moe_atlas.auditing.processes.digests import digest_of
from moe_atlas.errors import AtlasError
from moe_atlas.receipt.canonical import encode_receipt, parse_receipt
from moe_atlas.receipt.schema import block_problems
from moe_atlas.system.atomic_write import write_atomic
from moe_atlas.system.bounded_read import Unreadable, read_regular

SCHEMA = "atlas/yardstick/v1"
MAX_BYTES = 64 << 20


def folder() -> Path:
    """Return the folder of the cache: ``moe-atlas/yardsticks`` in XDG_CACHE_HOME, by default ``~/.cache``."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "moe-atlas" / "yardsticks"


def recall(key: str) -> dict[str, Any] | None:
    """Return the block that was kept under a key; None without an entry that holds together."""
    try:
        found = parse_receipt(read_regular(_path(key), MAX_BYTES), key)
    except (Unreadable, AtlasError, RuntimeError):
        return None
    block = found.get("yardstick")
    whole = (
        found.get("schema") == SCHEMA
        and found.get("key") == key
        and isinstance(block, dict)
        and found.get("sha256") == digest_of(block)
        and not block_problems("yardstick", {"taken_from": "cache", **block})
    )
    return block if whole else None


def keep(key: str, block: dict[str, Any]) -> None:
    """Keep a block under a key; a folder that cannot be written is left alone."""
    entry = {"schema": SCHEMA, "key": key, "sha256": digest_of(block), "yardstick": block}
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_path(key), encode_receipt(entry))


def _path(key: str) -> Path:
    return folder() / f"{key}.json"
