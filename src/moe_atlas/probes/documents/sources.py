"""Read the source of a domain: a file, a folder, a pattern of files, or a folder that `datasets` saved."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath

from moe_atlas.checkpoint.headers.strict_json import parse_json_object
from moe_atlas.probes.documents import formats
from moe_atlas.probes.documents.formats import ROW_FILES, is_row_file, records, token_table, utf8
from moe_atlas.probes.documents.rows import Record, refuse
from moe_atlas.probes.reading.bounded_files import read_bounded, sha256_hex
from moe_atlas.text import quoted

MAX_FILES = 100_000
_MAX_STATE_BYTES = 16 << 20


@dataclass(frozen=True)
class Source:
    """A source read in full.

    Attributes:
        records: the rows in the order of the file; files of a folder are sorted by name.
        sha256: digest of the file's bytes; for several files, of the lines ``name TAB sha256``, sorted by name.
    """

    records: tuple[Record, ...]
    sha256: str


def open_source(folder: Path, source: str, rows: str | None = None) -> Source:
    """Read a source as a domain names it: a path relative to `folder`, or a pattern of paths within it.

    Raises:
        InputRefused: E_PROBE_SOURCE, as `read_source`, and for a pattern that leaves the folder or matches no file.
    """
    if glob.has_magic(source) and not (folder / source).exists():
        return _read_files(folder, _matches(folder, source), rows)
    return read_source(folder / source, rows)


def read_source(path: Path, rows: str | None = None) -> Source:
    """Read all rows of a source.

    Args:
        path: a file, a folder of files, or a folder that `datasets` saved.
        rows: the form of row to read, of `rows.FORMS`; None if a row holds the columns of one form only.

    Raises:
        InputRefused: E_PROBE_SOURCE if the source is missing, has an unknown format, is no regular file or is too long,
            or if a row is malformed, with its line.
    """
    if not path.is_dir():
        raw = read_bounded(path, formats.MAX_SOURCE_BYTES, "E_PROBE_SOURCE")
        return Source(tuple(_records(raw, path.name, "", rows)), sha256_hex(raw))
    if (path / "dataset_dict.json").exists():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        problem = f"is a datasets folder of several splits: {', '.join(map(quoted, splits))}"
        refuse(str(path), problem, f"name one of them, such as {path.name}/{next(iter(splits), 'train')}")
    if (path / "state.json").exists() and (path / "dataset_info.json").exists():
        return _read_files(path, _saved(path), rows)
    return _read_files(path, _folder(path), rows)


def _read_files(folder: Path, names: Iterable[str], rows: str | None) -> Source:
    """Read the rows of several files of at most `MAX_SOURCE_BYTES` together."""
    found: list[Record] = []
    lines: list[str] = []
    left = formats.MAX_SOURCE_BYTES
    for name in names:
        raw = read_bounded(folder / name, left, "E_PROBE_SOURCE")
        left -= len(raw)
        lines.append(f"{name}\t{sha256_hex(raw)}\n")
        found.extend(_records(raw, name, f"{name}:", rows, text=True))
    return Source(tuple(found), sha256_hex("".join(lines).encode("utf-8", "surrogateescape")))


def _folder(path: Path) -> Iterator[str]:
    for file in sorted(path.iterdir(), key=lambda entry: entry.name):
        if file.name.startswith("."):
            continue
        if not (is_row_file(file.name) or file.suffix == ".txt"):
            problem = f"a folder of documents holds {', '.join(ROW_FILES)} and .txt files only"
            refuse(str(file), problem, f'move it elsewhere, or name the files: source: "{path.name}/*.txt"')
        yield file.name


def _saved(path: Path) -> list[str]:
    """Return the files of a dataset that ``save_to_disk`` of the datasets library wrote, in the dataset's order."""
    state = parse_json_object(
        read_bounded(path / "state.json", _MAX_STATE_BYTES, "E_PROBE_SOURCE"), "state.json"
    )
    listed = state.get("_data_files")
    names = (
        [entry.get("filename") for entry in listed if isinstance(entry, dict)]
        if isinstance(listed, list)
        else []
    )
    plain = [name for name in names if isinstance(name, str) and PurePath(name).name == name]
    if not plain or len(plain) < len(names) or not all(name.endswith(".arrow") for name in plain):
        refuse(
            str(path / "state.json"), "names no Arrow files of its folder", "save it again with save_to_disk"
        )
    return plain


def _matches(folder: Path, pattern: str) -> list[str]:
    """Return the files that a pattern matches, sorted by name; hidden files only if the pattern names the dot.

    Raises:
        InputRefused: E_PROBE_SOURCE if a matched file lies outside `folder`, or if no file matches.
    """
    parts = PurePath(pattern).parts
    if PurePath(pattern).is_absolute() or ".." in parts:
        refuse(
            quoted(pattern), "leaves the probe file's folder", "name files beside the probe file or below it"
        )
    # A link to a folder above could make the walk endless, so the number of files is limited before they are sorted.
    every = list(islice(glob.iglob(pattern, root_dir=folder, recursive=True), MAX_FILES + 1))
    if len(every) > MAX_FILES:
        refuse(quoted(pattern), f"matches more than {MAX_FILES} files", "name fewer")
    names = sorted(name for name in every if (folder / name).is_file())
    home = folder.resolve()
    for name in names:
        if not (folder / name).resolve().is_relative_to(home):
            refuse(str(folder / name), "is a link that leaves the probe file's folder", "copy the file there")
    if not names:
        refuse(quoted(pattern), f"matches no file in {quoted(str(folder))}", "check the pattern")
    return names


def _records(raw: bytes, name: str, prefix: str, rows: str | None, text: bool = False) -> Iterator[Record]:
    """Yield the rows of a file; with `text`, a file of unknown ending is read as text, because a pattern named it."""
    if is_row_file(name):
        return records(raw, name, prefix, rows)
    if name.endswith(".safetensors"):
        return token_table(raw, name)
    if text or name.endswith(".txt"):
        return iter([Record(name, name, utf8(raw, name))])
    known = ", ".join((*ROW_FILES, ".txt", ".safetensors"))
    step = f'a text of another ending is named by a pattern: source: "*{Path(name).suffix}"'
    refuse(name, "has no format known by its ending", f"known are {known} and a folder; {step}")
