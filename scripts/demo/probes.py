"""The probe set: held-out documents that neither the base nor any tune was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from scripts.demo.corpus import Corpus, Document
from scripts.demo.task import Item

DOCUMENTS = 120
CANARIES = 8
TOKENS = 128
TARGET = 0.8  # share of items answered exactly; a guess is right one time in five


def write_documents(folder: Path, corpus: Corpus, items: list[Item]) -> None:
    """Write one JSON-lines file a domain: prose, code, canary and task."""
    prose = corpus.held_out["prose"]
    _write(folder / "prose.jsonl", map(_text_row, prose[:DOCUMENTS]))
    _write(folder / "code.jsonl", map(_text_row, corpus.held_out["code"][:DOCUMENTS]))
    _write(folder / "canary.jsonl", map(_text_row, prose[DOCUMENTS : DOCUMENTS + CANARIES]))
    _write(folder / "task.jsonl", ({"prompt": i.prompt, "completion": i.completion} for i in items))


def _text_row(document: Document) -> dict[str, str]:
    return {"id": document.name, "text": document.text}


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def probe_file(name: str, policy: str, canary_limit: float | None) -> str:
    """The probe file around a policy block.

    Args:
        name: name of the probe set.
        policy: the `policy` block, indented and commented.
        canary_limit: nats per token that a single canary may lose; None leaves the canaries out.
    """
    canary = (
        "  # Eight more held-out documents, each guarded by itself.\n"
        f"  - {{name: canary, role: canary, source: documents/canary.jsonl, max_nll_increase: {canary_limit:g}}}\n"
        if canary_limit is not None
        else ""
    )
    return f"""\
schema: atlas/probes/v1
name: {name}
tokenizer: bytes
windows: {{tokens: {TOKENS}, per_document: 1, seed: 7}}
evaluation: {{experts: active, token_stride: 1, quantile: 0.9}}
protected_layers: all
domains:
  # Documentation and source of standard library modules that were held out as a whole.
  - {{name: prose, role: base, source: documents/prose.jsonl, documents: {DOCUMENTS}}}
  - {{name: code, role: base, source: documents/code.jsonl, documents: {DOCUMENTS}}}
{canary}\
  # The task: name the style of an identifier. Five answers, so chance is right one time in five.
  - name: task
    role: task
    source: documents/task.jsonl
    documents: {DOCUMENTS}
    success: {{metric: exact_match, at_least: {TARGET:g}}}
policy:
{policy}"""
