"""Choose the documents of a look: from the standard library, or from a folder of files.

A choice depends on the seed, the names and the tokenizer alone, so that the same look reads the same documents again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.look.standard_library import Document, code, library, modules, prose, rank, read_module, title
from moe_atlas.probes.documents.sources import read_source
from moe_atlas.system.bounded_read import Unreadable, read_regular
from moe_atlas.text import not_there, shown

MAX_FILES = 20_000
MAX_TEXT_BYTES = 8 << 20
MAX_DOMAINS = 8
KINDS = {
    "prose": (".txt", ".md", ".rst", ".tex", ".html", ".htm", ".org", ".adoc"),
    "code": (
        *(
            ".py",
            ".pyi",
            ".c",
            ".h",
            ".cc",
            ".cpp",
            ".hpp",
            ".cu",
            ".cuh",
            ".rs",
            ".go",
            ".java",
            ".kt",
            ".scala",
        ),
        *(
            ".js",
            ".jsx",
            ".ts",
            ".tsx",
            ".rb",
            ".php",
            ".swift",
            ".cs",
            ".lua",
            ".jl",
            ".r",
            ".sh",
            ".sql",
            ".hs",
        ),
    ),
}
"""Endings of the files of each kind."""

ROWS = (".jsonl", ".jsonl.gz", ".parquet", ".arrow")
"""Endings of files of rows; a .json file in a folder of code is mostly a setting."""

Fits = Callable[[str], bool]
"""Whether a text is long enough for a window."""


@dataclass(frozen=True)
class Texts:
    """The documents of one domain.

    Attributes:
        name: the domain's name.
        documents: texts that are long enough for a window; empty for rows.
        rows: a file of rows to read instead, None for texts.
        count: how many of its rows to draw; None takes all.
    """

    name: str
    documents: tuple[Document, ...] = ()
    rows: Path | None = None
    count: int | None = None


@dataclass(frozen=True)
class Chosen:
    """The documents of a look.

    Attributes:
        source: where they come from, in words.
        how: how they became domains, in words.
        domains: the documents by domain.
    """

    source: str
    how: str
    domains: tuple[Texts, ...]


def from_library(most: int, seed: int, fits: Fits) -> Chosen:
    """Choose docstrings (`prose`) and functions (`code`) of the running interpreter's standard library.

    A module gives one document at most, because texts of one module are no independent observations.

    Raises:
        InputRefused: E_PROBE_SOURCE if the library holds no text that is long enough.
    """
    taken: dict[str, list[Document]] = {"prose": [], "code": []}
    for name, path in sorted(modules(library()), key=lambda module: _rank(module[0], seed)):
        source = read_module(path)
        for kind, texts in (("prose", prose), ("code", code)):
            found = _first(texts(name, source), seed, fits) if len(taken[kind]) < most else None
            if found is not None:
                taken[kind].append(found)
                break
        if all(len(documents) == most for documents in taken.values()):
            break
    domains = [Texts(kind, tuple(documents)) for kind, documents in taken.items()]
    return _whole(title(), "docstrings are prose, functions are code, one text a module", domains)


def from_folder(folder: Path, most: int, seed: int, fits: Fits) -> Chosen:
    """Choose documents of a folder: each file of rows is a domain, texts form domains by subfolder or by kind.

    Raises:
        UsageError: E_NO_FOLDER.
        InputRefused: E_PROBE_SOURCE if nothing in it can be used, or if it makes too many domains.
    """
    if not folder.is_dir():
        problem = not_there(folder) if not folder.exists() else "is no folder"
        raise UsageError("E_NO_FOLDER", f"--data {shown(str(folder))}", problem, "give a folder of documents")
    files = _files(folder)
    rows = [path for path in files if path.name.endswith(ROWS)]
    texts = [path for path in files if _kind(path)]
    how, groups = _grouped(folder, texts)
    found = [_texts(name, folder, group, most, seed, fits) for name, group in groups.items()]
    domains = [*found, *(_rows(path, folder, most, groups) for path in rows)]
    left = len(files) - len(rows) - len(texts)
    said = [*([how] if texts else []), *(["each file of rows is a domain"] if rows else [])]
    said += [f"left out for their kind: {left} of {len(files)} files"] if left else []
    return _whole(str(folder), "; ".join(said), domains)


def _whole(source: str, how: str, domains: Iterable[Texts]) -> Chosen:
    """Return the domains that hold documents; refuse none, and too many."""
    kept = tuple(domain for domain in domains if domain.documents or domain.rows)
    if not kept:
        step = "give documents of your own: --data FOLDER"
        raise InputRefused("E_PROBE_SOURCE", shown(source), "holds no text that fills a window", step)
    if len(kept) > MAX_DOMAINS:
        problem = f"makes {len(kept)} domains, a look takes at most {MAX_DOMAINS}"
        raise InputRefused(
            "E_PROBE_SOURCE", shown(source), problem, "give a folder with fewer subfolders or files"
        )
    return Chosen(source, how, kept)


def _first(documents: Sequence[Document], seed: int, fits: Fits) -> Document | None:
    ordered = sorted(documents, key=lambda document: _rank(document.name, seed))
    return next((document for document in ordered if fits(document.text)), None)


def _rank(name: str, seed: int) -> str:
    return rank(f"{seed} {name}")


def _files(folder: Path) -> list[Path]:
    """Return the files below a folder by name, without hidden ones."""
    every = list(islice(folder.rglob("*"), MAX_FILES + 1))
    if len(every) > MAX_FILES:
        where = f"--data {shown(str(folder))}"
        raise InputRefused("E_PROBE_SOURCE", where, f"holds more than {MAX_FILES} files", "give a part of it")
    inside = (path for path in sorted(every) if path.is_file())
    return [
        path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _kind(path: Path) -> str | None:
    return next((kind for kind, endings in KINDS.items() if path.suffix.lower() in endings), None)


def _grouped(folder: Path, texts: Sequence[Path]) -> tuple[str, dict[str, list[Path]]]:
    """Group text files by subfolder where there are two or more, else by kind; say which."""
    tops = Counter(path.relative_to(folder).parts[0] for path in texts if path.parent != folder)
    by_folder = len(tops) > 1
    groups: dict[str, list[Path]] = {}
    for path in texts:
        top = path.relative_to(folder).parts[0]
        groups.setdefault(top if by_folder and top in tops else str(_kind(path)), []).append(path)
    return ("each subfolder is a domain" if by_folder else "texts and code are a domain each"), groups


def _texts(name: str, folder: Path, paths: Sequence[Path], most: int, seed: int, fits: Fits) -> Texts:
    def documents() -> Iterator[Document]:
        seen: set[str] = set()
        for path in sorted(paths, key=lambda path: _rank(path.relative_to(folder).as_posix(), seed)):
            text = _text(path)
            if text is not None and text not in seen and fits(text):
                seen.add(text)
                yield Document(path.relative_to(folder).as_posix(), text)

    return Texts(name, tuple(islice(documents(), most)))


def _text(path: Path) -> str | None:
    """Return a file's text; None for one that is too long, unreadable or no UTF-8."""
    try:
        return read_regular(path, MAX_TEXT_BYTES).decode("utf-8")
    except (Unreadable, UnicodeDecodeError):
        return None


def _rows(path: Path, folder: Path, most: int, taken: Collection[str]) -> Texts:
    """Return a file of rows as a domain, named without its ending where that names nothing else."""
    found = len({record.document_id for record in read_source(path).records})
    whole = path.relative_to(folder).as_posix()
    short = whole[: whole.index(path.name)] + path.name.split(".")[0]
    return Texts(
        whole if short in taken else short, rows=path.resolve(), count=most if found > most else None
    )
