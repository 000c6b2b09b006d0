"""Real text that every CPython carries: the source of its standard library and the documentation in it."""

from __future__ import annotations

import ast
import hashlib
import platform
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Test suites repeat one pattern thousands of times; encodings and pydoc_data are tables, not code.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NAMED = (ast.ClassDef, *FUNCTIONS)


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        name: where it stands, such as ``json/decoder.py`` or ``json/decoder.py:JSONDecoder.raw_decode``.
        text: its text.
    """

    name: str
    text: str

    @property
    def rank(self) -> str:
        """A digest of the name: a random but reproducible order."""
        return rank(self.name)


def rank(name: str) -> str:
    """Return the digest of a name, which puts names in a random but reproducible order."""
    return hashlib.sha256(name.encode()).hexdigest()


def title() -> str:
    """Return what the library is called: another interpreter carries other text."""
    return f"the standard library of {platform.python_implementation()} {platform.python_version()}"


def library() -> Path:
    """Return the folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of every module under a folder, by name; no test suites and no tables."""
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not SKIPPED_FOLDERS & set(inside.parts):
            yield inside.as_posix(), path


def read_module(path: Path) -> str:
    """Return the source of a module; bytes that are not UTF-8 are replaced."""
    return path.read_bytes().decode("utf-8", errors="replace")


def definitions(source: str) -> list[tuple[str, Definition]]:
    """Return the module, its classes and functions with their dotted names, outer ones first; the module's is empty.

    A source of another Python version, which some packages keep as test material, has none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            waiting: deque[tuple[str, ast.AST]] = deque([("", ast.parse(source))])
    except (SyntaxError, ValueError):
        return []
    found: list[tuple[str, Definition]] = []
    while waiting:
        name, node = waiting.popleft()
        if isinstance(node, Definition):
            found.append((name, node))
        for child in ast.iter_child_nodes(node):
            inner = f"{name}.{child.name}".lstrip(".") if isinstance(child, NAMED) else name
            waiting.append((inner, child))
    return found


def docstrings(source: str) -> str:
    """Return all docstrings of a module, blank lines between them; empty where the source does not parse."""
    found = [ast.get_docstring(node) for _, node in definitions(source)]
    return "\n\n".join(text for text in found if text)


def prose(name: str, source: str) -> list[Document]:
    """Return every docstring of a module, each named by the place where it stands."""
    found = [(_place(name, inner), ast.get_docstring(node)) for inner, node in definitions(source)]
    return [Document(place, text) for place, text in found if text]


def code(name: str, source: str) -> list[Document]:
    """Return the source of every function of a module, each named by the place where it stands."""
    lines = source.splitlines(keepends=True)
    return [
        Document(_place(name, inner), "".join(lines[node.lineno - 1 : node.end_lineno]))
        for inner, node in definitions(source)
        if isinstance(node, FUNCTIONS)
    ]


def _place(name: str, inner: str) -> str:
    return f"{name}:{inner}" if inner else name
