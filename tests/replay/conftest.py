"""Tiny checkpoints, each written once per test run."""

from __future__ import annotations

import pytest
import torch

from scripts.oracle import tiny


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Folder of a case in a dtype; saved on first use."""
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def folder(case: str, dtype: torch.dtype = torch.float32):
        key = (case, dtype)
        if key not in made:
            made[key] = tiny.save(case, root / f"{case}-{dtype}", dtype=dtype)
        return made[key]

    return folder
