"""A small probe set: two base domains, a canary and a task, byte tokens."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from moe_atlas.probes.documents.encoding import Encoder
from moe_atlas.probes.load import read_probes

PROBES = """\
schema: atlas/probes/v1
name: gate
tokenizer: bytes
windows: {tokens: 32, per_document: 1, seed: 7}
evaluation: {experts: active, token_stride: 1, quantile: 0.9}
protected_layers: [2, 8-20]
domains:
  - {name: prose, role: base, source: prose.jsonl, documents: 5}
  - {name: canary, role: canary, source: canary.jsonl, max_nll_increase: 0.5}
  - {name: code, role: base, source: code.jsonl, documents: 5}
  - {name: sft, role: task, source: sft.jsonl, documents: 5, success: {metric: nll, at_most: 1.9}}
policy:
  stage: chart-preserving
  confidence: 0.95
  resamples: 4000
  rewrite: {coordinate: 0.02, boundary: 0.08, transition: 0.01, content: 0.10, overlap_drop: 0.02,
            dead_share_rise: 0.02, entropy_drop: 0.10, load_cv_rise: 0.25,
            refinement: {mu: [1, 1, 0.5], tau: 0.25}, handoff: {lambda: [1, 0.5]},
            smooth: {adjacency: 10, occupancy: 30000, handoff: 50, refinement: 50}}
  damage: {nll: 0.02, document_nll: 0.5, document_share: 0.05}
  weights: {must_not_change: [router], must_change: []}
"""


def prose(seed: int, length: int) -> str:
    """Text that no two seeds share."""
    return "".join(random.Random(seed).choices("abcdefgh ", k=length))


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def encoder_of(folder: Path, tokenizer: str | None = "bytes", **choices: object) -> Encoder:
    """The encoder of a probe file in `folder` with these choices."""
    config = read_probes(PROBES.encode(), folder / "probes.yaml")
    return Encoder(replace(config, tokenizer=tokenizer, **choices))  # type: ignore[arg-type]
