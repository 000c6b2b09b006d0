"""The documents that a probe file is written for: how a probe file names them, and how long they are.

Shape legend: N documents that were looked at.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.probes.documents.encoding import Encoder
from moe_atlas.probes.documents.formats import is_row_file
from moe_atlas.probes.documents.rows import Record
from moe_atlas.probes.documents.selection import in_drawn_order
from moe_atlas.probes.documents.sources import MAX_FILES, open_source
from moe_atlas.text import not_there, shown

FORMS = ("messages", "conversations", "prompt", "instruction", "text", "tokens")
"""Which form is taken of a row that holds the columns of several: the one that says most of who wrote what."""
LOOKED_AT = (
    400  # documents whose length decides; tokenising more would take long and move no quantile by much
)
_HEAD = 4096  # bytes that tell a text from another file


@dataclass(frozen=True)
class Given:
    """A domain as the command line names it.

    Attributes:
        name: the domain's name.
        role: ``base`` or ``task``.
        path: the file or folder.
    """

    name: str
    role: str
    path: Path


@dataclass(frozen=True)
class Surveyed:
    """The documents of a domain.

    Attributes:
        given: the domain.
        source: the source in the probe file's spelling.
        rows: the form of row to name in the probe file; None where rows hold one form only.
        total: documents of the source.
        lengths: tokens of the shortest row of each document that was looked at, in drawn order, int64 [N].
        whole: whether rows are windows of their own length, as in a task domain with prompts or turns.
        reads: the form that was found, in words.
    """

    given: Given
    source: str
    rows: str | None
    total: int
    lengths: NDArray[np.int64]
    whole: bool
    reads: str

    def long_enough(self, tokens: int) -> int:
        """Return how many documents hold a window of so many tokens; of those not looked at, the same share."""
        if self.whole or not len(self.lengths):
            return self.total
        return int(self.total * float((self.lengths >= tokens).mean()))


def source_of(path: Path, home: Path) -> str:
    """Return how a probe file in `home` names a file or folder; of other files than rows and .txt, by a pattern.

    Raises:
        UsageError: E_NO_FILE if there is no such file or folder.
        InputRefused: E_PROBE_SOURCE for a folder without texts, or one outside `home` that only a pattern can name.
    """
    if not path.exists():
        raise UsageError("E_NO_FILE", shown(str(path)), not_there(path, "there is no such file or folder"))
    relative = os.path.relpath(path.resolve(), home.resolve())
    if not path.is_dir() or (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return relative
    files = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    if files and all(is_row_file(name) or name.endswith(".txt") for name in files):
        return relative
    ending = _commonest_ending(path)
    if relative.startswith(os.pardir):
        problem = (
            "holds files that only a pattern can name, and a pattern must lie below the probe file's folder"
        )
        above = os.path.commonpath([path.resolve(), home.resolve()])
        step = f"write the probe file above it: --out {Path(above) / 'probes.yaml'}"
        raise InputRefused("E_PROBE_SOURCE", shown(str(path)), problem, step)
    return os.path.join("" if relative == os.curdir else glob.escape(relative), f"**/*{ending}")


def _commonest_ending(folder: Path) -> str:
    endings = Counter(path.suffix for path in _texts(folder))
    if not endings:
        step = "name a folder of .txt files, of rows, or of source code"
        raise InputRefused("E_PROBE_SOURCE", shown(str(folder)), "holds no texts", step)
    most = max(endings.values())
    return min(ending for ending, count in endings.items() if count == most)


def _texts(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that a pattern would read as texts, at most `MAX_FILES`."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if number >= MAX_FILES:
            return
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.suffix and path.is_file() and not is_row_file(path.name) and _is_text(path):
            yield path


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if b"\0" in head or not head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # a character that the head cuts
    return True


def survey(given: Given, source: str, home: Path, encoder: Encoder, seed: int) -> Surveyed:
    """Read a source and measure documents in the order in which a registration draws them.

    Raises:
        InputRefused: every refusal of `open_source` and of an `Encoder`.
    """
    records, rows = _read(home, source)
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.document_id, []).append(record)
    looked = in_drawn_order(grouped, given.name, seed)[:LOOKED_AT]
    parts = {name: [encoder.part(record) for record in grouped[name]] for name in looked}
    lengths = [min(len(part.tokens) for part in some) for some in parts.values()]
    marked = any(part.counted is not None for some in parts.values() for part in some)
    return Surveyed(
        given=given,
        source=source,
        rows=rows,
        total=len(grouped),
        lengths=np.array(lengths, dtype=np.int64),
        whole=marked and given.role == "task",
        reads=rows or ("prompts or turns" if marked else "texts"),
    )


def _read(home: Path, source: str) -> tuple[tuple[Record, ...], str | None]:
    """Return the rows, and the form to name if they hold the columns of several."""
    try:
        return open_source(home, source).records, None
    except InputRefused as error:
        for form in FORMS:
            try:
                return open_source(home, source, form).records, form
            except InputRefused:
                continue
        raise error
