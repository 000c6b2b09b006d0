"""The demo's folder: where things lie, and what each was made from, so that nothing is made twice."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch

import moe_atlas
import scripts.training

Facts = dict[str, Any]
MEASURES = Path(moe_atlas.__file__).parent
TRAINS = Path(scripts.training.__file__).parent


class Place:
    """Paths under one folder, and the record of what was built there.

    The record maps a name to a key, the digest of everything the thing was made from, and to facts about it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.documents = root / "documents"
        self.references = root / "reference"
        self.measuring = root / "references.yaml"
        self.probes = root / "probes.yaml"
        self.policy = root / "policy.yaml"
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

    def _entries(self) -> dict[str, Any]:
        try:
            entries: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return entries


def training_key(*parts: object) -> str:
    """Digest of what a checkpoint was made from: recipes, sources, the corpus' Python and torch."""
    return _digest(platform.python_version(), torch.__version__, *parts, *_sources(TRAINS))


def measuring_key(*parts: object) -> str:
    """Digest of what a receipt was made from, the auditor's own source included."""
    return _digest(torch.__version__, *parts, *_sources(MEASURES))


def _sources(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))]


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
