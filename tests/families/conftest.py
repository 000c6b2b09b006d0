"""A tiny checkpoint whose config and tensors a test may change."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from safetensors.torch import load_file, save_file

from scripts.oracle import tiny


@pytest.fixture
def edited(tmp_path):
    """Save a case, pass its config and tensors to an editor, write them back, return the folder."""

    def edit(case: str, change: Callable[[dict, dict], None], **changes):
        folder = tiny.save(case, tmp_path / case, **changes)
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        change(config, tensors)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "model.safetensors")
        return folder

    return edit
