"""The probe set: held-out documents that neither the base nor any tune was trained on.

Two probe files share the documents. The reference tunes are measured with `references.yaml`, whose policy gates
nothing; `probes.yaml` holds no policy, because `atlas calibrate` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from moe_atlas.channels import GATED
from moe_atlas.look.standard_library import Document
from scripts.training.corpus import Corpus
from scripts.training.task import Item

CANARIES = 8
TOKENS = 128
TARGET = 0.8  # share of items answered exactly; a guess is right one time in five

_UNGATED = "\n".join(f"    {channel.budget}: null" for channel in GATED)
MEASURING = f"""\
# The reference tunes are measured with it: no drift and no damage is gated, only the task must be reached.
policy:
  stage: chart-preserving
  confidence: 0.95
  resamples: 2000
  rewrite:
{_UNGATED}
    # mu: boundary and content drift count in full, what the least used expert lost counts by half.
    refinement: {{mu: [1, 1, 0.5], tau: 1}}
    handoff: {{lambda: [1, 0.5]}}  # reported, never gated
  damage: {{nll: null, kl: null, document_nll: null, document_share: null}}
  # No tune is meant to touch the load-balancing bias, and a tune that never landed is no tune.
  weights: {{must_not_change: [selection_bias], must_change: [attention]}}
"""


def write_documents(folder: Path, corpus: Corpus, items: list[Item], documents: int) -> None:
    """Write one JSON-lines file a domain, of so many documents."""
    prose = corpus.held_out["prose"]
    _write(folder / "prose.jsonl", map(_text_row, prose[:documents]))
    _write(folder / "code.jsonl", map(_text_row, corpus.held_out["code"][:documents]))
    _write(folder / "canary.jsonl", map(_text_row, prose[documents : documents + CANARIES]))
    rows = ({"prompt": i.prompt, "completion": i.completion} for i in items[:documents])
    _write(folder / "task.jsonl", rows)


def _text_row(document: Document) -> dict[str, str]:
    return {"id": document.name, "text": document.text}


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def probe_file(name: str, documents: int, policy: str = "") -> str:
    """The probe file called `name`, of so many documents a domain, with a `policy` block or without."""
    return f"""\
schema: atlas/probes/v1
name: {name}
tokenizer: bytes
windows: {{tokens: {TOKENS}, per_document: 1, seed: 7}}
evaluation: {{experts: active, token_stride: 1, quantile: 0.9}}
protected_layers: all
domains:
  # Documentation and source of standard library modules that were held out as a whole.
  - {{name: prose, role: base, source: documents/prose.jsonl, documents: {documents}}}
  - {{name: code, role: base, source: documents/code.jsonl, documents: {documents}}}
  # Eight more held-out documents, each guarded by itself: none may become twice as surprising (ln 2 nats a byte).
  - {{name: canary, role: canary, source: documents/canary.jsonl, max_nll_increase: 0.69}}
  # The task: name the style of an identifier. Five answers, so chance is right one time in five.
  - name: task
    role: task
    source: documents/task.jsonl
    documents: {documents}
    success: {{metric: exact_match, at_least: {TARGET:g}}}
{policy}"""
