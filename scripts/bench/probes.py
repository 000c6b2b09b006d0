"""Registered probe sets of random tokens, and the same tokens as an array for the peer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from moe_atlas.probes.registration import register

POLICY = {
    "stage": "chart-preserving",
    "task": "none",
    "rewrite": {
        "coordinate": 0.02, "boundary": 0.08, "transition": 0.01, "content": 0.10, "overlap_drop": 0.02,
        "dead_share_rise": 0.02, "entropy_drop": 0.10, "load_cv_rise": 0.25,
        "refinement": {"mu": [1, 1, 0.5], "tau": 0.25}, "handoff": {"lambda": [1, 0.5]},
        "smooth": {"adjacency": 10, "occupancy": 30000, "handoff": 50, "refinement": 50},
    },
    "damage": {"nll": 0.02, "document_nll": 0.5, "document_share": 0.12},
}  # fmt: skip


def probe(folder: Path, windows: int, length: int, vocab: int) -> Path:
    """One base domain of so many windows; `tokens.npy` beside it holds the same tokens [windows, length]."""
    path = folder / "probes.yaml"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    tokens_WS = np.random.default_rng(0).integers(0, vocab, (windows, length))
    np.save(folder / "tokens.npy", tokens_WS)
    rows = [json.dumps({"id": str(number), "tokens": row.tolist()}) for number, row in enumerate(tokens_WS)]
    (folder / "random.jsonl").write_text("\n".join(rows) + "\n")
    config = {
        "schema": "atlas/probes/v1",
        "name": folder.name,
        "windows": {"tokens": length, "per_document": 1, "seed": 7},
        "evaluation": {"experts": "active", "token_stride": 1, "quantile": 0.9},
        "protected_layers": "all",
        "domains": [{"name": "random", "role": "base", "source": "random.jsonl", "documents": windows}],
        "policy": POLICY,
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    register(path, force=True)
    return path
