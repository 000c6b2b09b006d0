"""The lab's text: three domains of the standard library, and two small tasks."""

from __future__ import annotations

import hashlib
import io
import json
import tokenize
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from moe_atlas.look.standard_library import Document
from scripts.training.corpus import Corpus, load_corpus
from scripts.training.task import Item, load_items

DOMAINS = ("prose", "code", "comments")
TASKS = ("style", "sums")
DOCUMENTS = 50
TASK_DOCUMENTS = 40
TOKENS = 64
LONG_ENOUGH = 200


@cache
def corpus() -> Corpus:
    """The shared corpus and a third domain: the comments of a module; the same modules are held out."""
    two = load_corpus()
    comments = {
        side: _comments(documents["code"])
        for side, documents in (("train", two.train), ("held", two.held_out))
    }
    return Corpus(
        train=two.train | {"comments": comments["train"]},
        held_out=two.held_out | {"comments": comments["held"]},
    )


def _comments(modules: Iterable[Document]) -> list[Document]:
    found = [Document(module.name, comments_of(module.text)) for module in modules]
    return [document for document in found if len(document.text) >= LONG_ENOUGH]


def comments_of(source: str) -> str:
    """All comments of a module, one a line; empty where the source does not tokenise."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError, IndentationError):
        return ""
    return "\n".join(token.string for token in tokens if token.type == tokenize.COMMENT)


@cache
def items(task: str) -> tuple[list[Item], list[Item]]:
    """Training and held-out items of a task: name an identifier's style, or add two numbers."""
    if task == "style":
        return load_items(load_corpus())
    sums = [Item(f"sum of {a} and {b}: ", f"{a + b}\n") for a in range(10, 100) for b in range(10, 100)]
    sums.sort(key=lambda item: hashlib.sha256(item.prompt.encode()).hexdigest())
    return sums[200:], sums[:200]


def write_sources(folder: Path) -> None:
    """Write one JSON-lines file a domain and a task."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        chosen = corpus().held_out[domain]
        _write(folder / f"{domain}.jsonl", ({"id": d.name, "text": d.text} for d in chosen))
    for task in TASKS:
        held = items(task)[1][:TASK_DOCUMENTS]
        _write(folder / f"{task}.jsonl", ({"prompt": i.prompt, "completion": i.completion} for i in held))


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
