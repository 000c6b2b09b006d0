"""Real text that every CPython carries: its own source (`code`) and its documentation (`prose`).

A module is held out as a whole: neither its source nor its docstrings are trained on, for a held-out
docstring that stood in a training file would not be held out at all. For the same reason only originals are held
out: modules that share next to no line with another one. Topics of pydoc quote each other, so all are trained on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from moe_atlas.look.standard_library import Document, docstrings, library, modules, read_module

LONG_ENOUGH = 400  # bytes: a probe window must find room, and a stub teaches nothing
HELD_OUT_MODULES = 132
TELLING_LINE = 40  # characters: a line this long that stands in two documents was copied
COPIED_SHARE = 0.02  # of a document's telling lines


@dataclass(frozen=True)
class Corpus:
    """Training and held-out documents of each domain, by domain name, in rank order."""

    train: dict[str, list[Document]]
    held_out: dict[str, list[Document]]


@cache
def load_corpus() -> Corpus:
    """Read the standard library of the running interpreter."""
    code, prose = read_modules(library())
    topic_documents = _long([Document(f"topic {name}", text) for name, text in topics.items()])
    candidates = originals(list(code.values())) & originals([*prose.values(), *topic_documents])
    held_modules = sorted(candidates & set(prose), key=lambda name: Document(name, "").rank)[
        :HELD_OUT_MODULES
    ]
    return Corpus(
        train={
            "prose": _long([d for n, d in prose.items() if n not in held_modules]) + topic_documents,
            "code": _long([d for n, d in code.items() if n not in held_modules]),
        },
        held_out={
            "prose": _long([prose[name] for name in held_modules]),
            "code": _long([code[name] for name in held_modules]),
        },
    )


def read_modules(root: Path) -> tuple[dict[str, Document], dict[str, Document]]:
    """Read every module under `root`: its source, and its docstrings joined; long enough ones only."""
    code, prose = {}, {}
    for name, path in modules(root):
        source = read_module(path)
        if len(source) >= LONG_ENOUGH:
            code[name] = Document(name, source)
        documentation = docstrings(source)
        if len(documentation) >= LONG_ENOUGH:
            prose[name] = Document(name, documentation)
    return code, prose


def originals(documents: list[Document]) -> set[str]:
    """Names of the documents whose telling lines stand, but for a small share, in no other document."""
    lines = {document.name: _telling_lines(document.text) for document in documents}
    found_in = Counter(line for own in lines.values() for line in own)
    return {
        name
        for name, own in lines.items()
        if sum(found_in[line] > 1 for line in own) <= COPIED_SHARE * len(own)
    }


def _telling_lines(text: str) -> set[str]:
    stripped = (line.strip() for line in text.splitlines())
    return {line for line in stripped if len(line) >= TELLING_LINE}


def _long(documents: list[Document]) -> list[Document]:
    kept = [document for document in documents if len(document.text) >= LONG_ENOUGH]
    return sorted(kept, key=lambda document: document.rank)
