"""Real text that every CPython carries: its own source (`code`) and its documentation (`prose`).

A module is held out as a whole: neither its source nor its docstrings are trained on, for a held-out
docstring that stood in a training file would not be held out at all.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

# Test suites repeat one pattern thousands of times; encodings and pydoc_data are tables, not code.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}
LONG_ENOUGH = 400  # bytes: a probe window must find room, and a stub teaches nothing
HELD_OUT_MODULES = 120
HELD_OUT_TOPICS = 20


@dataclass(frozen=True)
class Document:
    """One text with the name that decides on which side of the split it falls."""

    name: str
    text: str

    @property
    def rank(self) -> str:
        """A digest of the name: a random but reproducible order."""
        return hashlib.sha256(self.name.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Training and held-out documents of each domain, by domain name, in rank order."""

    train: dict[str, list[Document]]
    held_out: dict[str, list[Document]]


@cache
def load_corpus() -> Corpus:
    """Read the standard library of the running interpreter."""
    code, prose = read_modules(Path(sysconfig.get_path("stdlib")))
    topic_documents = _long([Document(f"topic {name}", text) for name, text in topics.items()])
    candidates = sorted(set(code) & set(prose), key=lambda name: Document(name, "").rank)
    held_modules = set(candidates[:HELD_OUT_MODULES])
    held_topics = set(topic_documents[:HELD_OUT_TOPICS])
    held_prose = [prose[name] for name in held_modules] + list(held_topics)
    return Corpus(
        train={
            "prose": _long([d for n, d in prose.items() if n not in held_modules])
            + [d for d in topic_documents if d not in held_topics],
            "code": _long([d for n, d in code.items() if n not in held_modules]),
        },
        held_out={"prose": _long(held_prose), "code": _long([code[name] for name in held_modules])},
    )


def read_modules(root: Path) -> tuple[dict[str, Document], dict[str, Document]]:
    """Read every module under `root`: its source, and its docstrings joined; long enough ones only."""
    code, prose = {}, {}
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if SKIPPED_FOLDERS & set(inside.parts):
            continue
        source = path.read_bytes().decode("utf-8", errors="replace")
        name = inside.as_posix()
        if len(source) >= LONG_ENOUGH:
            code[name] = Document(name, source)
        documentation = docstrings(source)
        if len(documentation) >= LONG_ENOUGH:
            prose[name] = Document(name, documentation)
    return code, prose


def docstrings(source: str) -> str:
    """All docstrings of a module, blank lines between them; empty where the source does not parse."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # files of another Python version, kept as test material
        return ""
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
    return "\n\n".join(text for text in found if text)


def _long(documents: list[Document]) -> list[Document]:
    kept = [document for document in documents if len(document.text) >= LONG_ENOUGH]
    return sorted(kept, key=lambda document: document.rank)
