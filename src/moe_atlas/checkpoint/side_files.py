"""The files beside a checkpoint's weights: a loader or a server may use them, but no replay reads them.

They are listed with their sizes and sha256, in bounded time and memory. None of them is loaded or run. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_atlas.checkpoint import files
from moe_atlas.checkpoint.files import FOREIGN_SUFFIXES, PIECE_BYTES, FileStat
from moe_atlas.errors import InputRefused, IntegrityError

HASHED_BYTES = 64 << 20  # bytes; of a longer file only the size is known
HASHED_TOTAL = 512 << 20  # bytes of all files of a folder
CONTENT_BYTES = 32 << 20  # bytes of a JSON file whose content is compared
LISTED = 256  # files that are listed one by one, beginning with those that a server acts on
ENTRIES = 4096  # names that are read of a folder and the folders in it
DEPTH = 3  # levels of folders

WEIGHTS, CODE, TEMPLATE, GENERATION = "weights", "code", "chat-template", "generation"
TOKENIZER, PREPROCESSOR, SETTINGS, OTHER = "tokenizer", "preprocessor", "settings", "other"
TRAINER, DOCUMENTATION, FOLDER = "trainer", "documentation", "folder"
SERVED = (WEIGHTS, CODE, TEMPLATE, GENERATION, TOKENIZER, PREPROCESSOR, SETTINGS)
"""Kinds of files that a server may act on, the most important first."""
QUIET = (TRAINER, DOCUMENTATION, FOLDER)
"""Kinds of files that do not change how a server serves."""
KINDS = (*SERVED, OTHER, *QUIET)

_KIND_OF_NAME = {
    **dict.fromkeys(("generation_config.json",), GENERATION),
    **dict.fromkeys(("tokenizer_config.json", "chat_template.json", "chat_template.jinja"), TEMPLATE),
    **dict.fromkeys(
        ("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"), TOKENIZER
    ),
    **dict.fromkeys(("merges.txt", "vocab.txt", "tekken.json", "tokenizer.model", "spiece.model"), TOKENIZER),
    **dict.fromkeys(("trainer_state.json", "training_args.bin", "optimizer.pt", "optimizer.bin"), TRAINER),
    **dict.fromkeys(("scheduler.pt", "scaler.pt", "training_args.json", "train_results.json"), TRAINER),
    **dict.fromkeys(("all_results.json", "eval_results.json", "latest"), TRAINER),
    **dict.fromkeys(
        ("LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt", "README", "README.txt"), DOCUMENTATION
    ),
    **dict.fromkeys((".gitattributes", ".gitignore", "CITATION.cff", "configuration.json"), DOCUMENTATION),
}
_KIND_OF_SUFFIX = {
    **dict.fromkeys((*FOREIGN_SUFFIXES, ".safetensors"), WEIGHTS),
    **dict.fromkeys((".py", ".so", ".pyc"), CODE),
    **dict.fromkeys((".jinja", ".jinja2"), TEMPLATE),
    **dict.fromkeys((".tiktoken", ".model", ".spm"), TOKENIZER),
    **dict.fromkeys((".json", ".yaml", ".yml", ".toml"), SETTINGS),
    **dict.fromkeys((".md", ".rst", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"), DOCUMENTATION),
}
_COSMETIC = ("transformers_version", "_from_model_config", "version", "name_or_path")
"""Top-level keys of JSON files that only say how the file was written."""


@dataclass(frozen=True)
class SideFile:
    """A file beside the weights, or a folder.

    Attributes:
        file: its path in the checkpoint's folder, with ``/`` between folders.
        kind: one of `KINDS`.
        size: bytes; None if it is no file or cannot be opened.
        sha256: the sha256 of its bytes; None if it was not read.
        content: the sha256 of a JSON file's content, without its layout and the keys that say how it was written.
        unread: the reason why its bytes were not read; None if they were.
        stat: the facts that identified it when it was read.
    """

    file: str
    kind: str
    size: int | None = None
    sha256: str | None = None
    content: str | None = None
    unread: str | None = None
    stat: Hashable = None

    def describe(self) -> dict[str, Any]:
        """Return the file as a receipt lists it."""
        row = {"file": self.file, "kind": self.kind, "bytes": self.size, "sha256": self.sha256}
        return row | {"content": self.content, "unread": self.unread}


def side_files(root: Path, own: Collection[str], *, one_file: bool) -> list[SideFile]:
    """Return every file that does not belong to the checkpoint itself, those that a server acts on first.

    Args:
        root: the checkpoint's folder.
        own: the names of the checkpoint's own files.
        one_file: whether the user gave the checkpoint as one file of the folder; other weights and folders there then
            belong to something else.
    """
    budget, found = HASHED_TOTAL, []
    named = _ordered(root, own, one_file)
    # Weights come last: they use what the other files leave of the total.
    for name, kind in sorted(named, key=lambda row: row[1] == WEIGHTS):
        entry = _read(root, name, kind, min(HASHED_BYTES, budget))
        budget -= entry.size or 0 if entry.sha256 else 0
        found.append(entry)
    return sorted(found, key=lambda entry: (KINDS.index(entry.kind), entry.file))


def file_facts(found: list[SideFile]) -> dict[str, Any]:
    """Return the list as a receipt keeps it: the first 256 files, then the number and one digest of the others."""
    rest = [json.dumps(entry.describe(), sort_keys=True) for entry in found[LISTED:]]
    digest = hashlib.sha256("\n".join(rest).encode("ascii")).hexdigest() if rest else None
    return {
        "listed": [entry.describe() for entry in found[:LISTED]],
        "more": {"files": len(rest), "sha256": digest},
    }


def require_unchanged(
    root: Path, own: Collection[str], first: Collection[SideFile], *, one_file: bool
) -> None:
    """Raise ``E_CHANGED`` if a file that a server may act on was added, removed or written since it was listed."""
    named = _ordered(root, own, one_file)
    then = {entry.file: entry.stat for entry in first if entry.kind not in QUIET}
    now = {name: _stat(root, name) for name, kind in named if kind not in QUIET}
    for name in sorted(then.keys() | now.keys()):
        if name not in then or name not in now or (then[name] is not None and then[name] != now[name]):
            change = "appeared" if name not in then else "is gone" if name not in now else "was written"
            raise IntegrityError("E_CHANGED", str(root / name), f"{change} while the audit ran")


def kind_of(name: str) -> str:
    """Return the kind of a file by its name."""
    plain = name.rpartition("/")[2]
    if plain in _KIND_OF_NAME:
        return _KIND_OF_NAME[plain]
    if plain.endswith(".index.json"):
        return WEIGHTS
    if plain.endswith("processor_config.json"):
        return PREPROCESSOR
    if plain.startswith(("rng_state", "events.out.tfevents")):
        return TRAINER
    return _KIND_OF_SUFFIX.get(Path(plain.lower()).suffix, OTHER)


def _ordered(root: Path, own: Collection[str], one_file: bool) -> list[tuple[str, str]]:
    """Return names and kinds, sorted by kind and name."""
    kinds = SERVED[1:] if one_file else KINDS
    named = [(name, FOLDER if name.endswith("/") else kind_of(name)) for name in _names(root, own)]
    return sorted(
        ((name, kind) for name, kind in named if kind in kinds), key=lambda row: (KINDS.index(row[1]), row[0])
    )


def _names(root: Path, own: Collection[str]) -> Iterator[str]:
    """Return the names of the files beside the checkpoint; in subfolders, only code and templates that loaders use."""
    left = ENTRIES
    pending = [("", 0)]
    while pending:
        folder, depth = pending.pop()
        entries = _entries(root / folder)
        if len(entries) > left:
            yield folder or "./"
            continue
        left -= len(entries)
        for entry in entries:
            name = folder + entry.name
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith(".") and depth < DEPTH:
                    pending.append((f"{name}/", depth + 1))
                    yield from [] if depth else [f"{name}/"]
            elif name not in own and (not depth or kind_of(name) in (CODE, TEMPLATE)):
                yield name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:
        return []


def _read(root: Path, name: str, kind: str, limit: int) -> SideFile:
    """Return the entry of one file, with its digests if it is not longer than the limit."""
    if kind == FOLDER:
        return SideFile(name, kind, unread="a folder")
    try:
        with files.open_regular(root, name) as (descriptor, stat):
            if stat.size > limit:
                return SideFile(name, kind, stat.size, unread="too long to be read", stat=stat)
            return SideFile(name, kind, stat.size, *_digests(descriptor, name, stat.size), stat=stat)
    except (InputRefused, OSError) as error:
        return SideFile(
            name, kind, unread=error.problem if isinstance(error, InputRefused) else "cannot be read"
        )


def _digests(descriptor: int, name: str, size: int) -> tuple[str, str | None]:
    """Return the sha256 of a file's bytes and, for a JSON file, of its content."""
    whole, kept = hashlib.sha256(), bytearray()
    keeps = name.endswith(".json") and size <= CONTENT_BYTES
    position = 0
    while piece := os.pread(descriptor, min(PIECE_BYTES, max(size - position, 0)), position):
        whole.update(piece)
        position += len(piece)
        if keeps:
            kept += piece
    return whole.hexdigest(), _content(bytes(kept)) if keeps else None


def _content(raw: bytes) -> str | None:
    try:
        value = json.loads(raw, object_pairs_hook=_unique)
        if isinstance(value, dict):
            value = {key: inner for key, inner in value.items() if key not in _COSMETIC}
        text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    except (ValueError, RecursionError):
        return None
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse repeated keys, which two parsers may read differently."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("duplicate key")
    return value


def _stat(root: Path, name: str) -> FileStat | None:
    try:
        with files.open_regular(root, name) as (_, stat):
            return stat
    except (InputRefused, OSError):
        return None
