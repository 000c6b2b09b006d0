"""Snapshots under tests/goldens: what a pipeline or a reader may depend on, frozen until a change is meant."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "goldens"
UPDATE = "UPDATE_GOLDENS"


def check(name: str, text: str) -> None:
    """Hold a text against its snapshot; `make goldens` writes the snapshots anew, for the diff to be read."""
    path = FOLDER / name
    if os.environ.get(UPDATE):
        path.write_text(text, encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    assert text == expected, f"differs from {path}; if that is meant: make goldens, and read the diff"
