"""The demo's folder: where things lie, and what each was made from, so that nothing is made twice."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import moe_atlas

Facts = dict[str, Any]
HERE = Path(__file__).parent
MEASURES = Path(moe_atlas.__file__).parent
TRAINS = [HERE / f"{name}.py" for name in ("corpus", "task", "batches", "model", "optimizer", "train")]


class Place:
    """Paths under one folder, and the record of what was built there.

    The record maps a name to a key, the digest of everything the thing was made from, and to facts about it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.documents = root / "documents"
        self.calibration = root / "calibration.yaml"
        self.probes = root / "probes.yaml"
        self.lock = root / "probes.lock.json"
        self.record = root / "built.json"

    def receipt(self, name: str) -> Path:
        """Where the receipt of a tune lies."""
        return self.root / f"{name}.receipt.json"

    def built(self, name: str, key: str) -> Facts | None:
        """The facts of a thing that was made from exactly this and still lies there."""
        entry = self._entries().get(name)
        there = (self.root / name).exists()
        return entry["facts"] if entry is not None and entry["key"] == key and there else None

    def note(self, name: str, key: str, facts: Facts) -> Facts:
        """Record a thing that now lies there."""
        entries = self._entries() | {name: {"key": key, "facts": facts}}
        partial = self.record.with_suffix(".partial")
        partial.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.record)
        return facts

    def once(self, name: str, key: str, make: Callable[[], Facts]) -> Facts:
        """The facts of a thing, made only if need be."""
        found = self.built(name, key)
        return self.note(name, key, make()) if found is None else found

    def _entries(self) -> dict[str, Any]:
        try:
            entries: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return entries


def training_key(*parts: object) -> str:
    """Digest of what a checkpoint was made from: recipes, sources, the corpus' Python and torch."""
    versions = (platform.python_version(), torch.__version__)
    return _digest(*versions, *parts, *(path.read_text(encoding="utf-8") for path in TRAINS))


def measuring_key(*parts: object) -> str:
    """Digest of what a receipt was made from, the auditor's own source included."""
    sources = sorted(MEASURES.rglob("*.py"))
    return _digest(torch.__version__, *parts, *(path.read_text(encoding="utf-8") for path in sources))


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
