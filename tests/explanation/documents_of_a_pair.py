"""Registered documents of text, and audits of them that keep token data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from moe_atlas.api import AuditOptions, audit
from tests.support import pairs

HOSTILE = [
    "\x1b[31m\x1b]0;owned\x07 red",
    "\u202eright to left\u2066\u200d",
    "x\r\n::error::owned\n  ::stop-commands::o\n##[error]owned",
    "<script>alert(1)</script><img src=x onerror=alert(2)> &amp; \"'",
    "[bold red]markup[/] \x00\x08\x7f\x9f",
]
SPOKEN = "we all know that if each node holds its own copy then nothing is lost when one fails"
WORDS = SPOKEN.split()
WIDE = [*WORDS, "naïve", "café", "€5", "😀😀", "ä"]
LENGTH = 48


def texts(seed: int, count: int, words: list[str] = WORDS) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words, 24)) for _ in range(count)]


def odd_text() -> str:
    return "the quick brown fox jumps over 0123456789 {}();\n\tif x == 1: return 'ä€😀' and then it ends here, at last"


def registered(folder: Path, found: dict[str, list[str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, documents in found.items():
        rows = [{"id": f"{name}-{n}", "text": text} for n, text in enumerate(documents)]
        (folder / f"of-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"id": f"q{n}", "prompt": f"say {n}: ", "completion": f"{n * n} it is"} for n in range(6)]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domains = [
        {"name": name, "role": "base", "source": f"of-{name}.jsonl", "documents": len(documents)}
        for name, documents in found.items()
    ]
    success = {"success": {"metric": "nll", "at_most": 9.0}}
    domains.append({"name": "sft", "role": "task", "source": "sft.jsonl", "documents": 6} | success)
    policy = {key: value for key, value in pairs.SAME.items() if key != "task"}
    return pairs.probe(folder, length=LENGTH, tokenizer="bytes", domains=domains, policy=policy, windows={
        "tokens": LENGTH, "per_document": 2, "seed": 7,
    })  # fmt: skip


def audited(folder: Path, base: Path, tuned: Path, probes: Path, **options) -> Path:
    folder.mkdir(exist_ok=True)
    options = {"dtype": "float32", "threads": 1, "tokens": True, **options}
    audit(base, tuned, probes, receipt=folder / "receipt.json", options=AuditOptions(**options))
    return folder / "receipt.json"
