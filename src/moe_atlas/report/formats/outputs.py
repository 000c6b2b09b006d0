"""The reports of a command: ``--format name[=path]``, checked before the work and written after it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_atlas.errors import AtlasError, UsageError
from moe_atlas.receipt.files import require_apart, require_free
from moe_atlas.report.formats import github
from moe_atlas.report.formats.destinations import Destination, File, StandardOutput
from moe_atlas.report.formats.interface import Format, FormatName
from moe_atlas.report.formats.table import FORMATS, SUFFIXES
from moe_atlas.report.opening import opened
from moe_atlas.text import shown


@dataclass(frozen=True)
class Output:
    """One report that a user asked for.

    Attributes:
        format: name of its format.
        path: path of its file; None is standard output.
    """

    format: FormatName
    path: Path | None

    @property
    def report(self) -> tuple[Format, Destination]:
        """The format with the place of its text."""
        return FORMATS[self.format], StandardOutput() if self.path is None else File(self.path)


@dataclass(frozen=True)
class Outputs:
    """All reports of a command.

    Attributes:
        wanted: the reports that the user asked for, in that order.
        github: whether to report to GitHub Actions as well.
    """

    wanted: tuple[Output, ...] = ()
    github: bool = False

    @property
    def on_stdout(self) -> bool:
        """Whether standard output takes one of the reports that the user asked for."""
        return any(output.path is None for output in self.wanted)

    def write(self, receipt: Mapping[str, Any], path: Path) -> list[Path]:
        """Write every report of the receipt at `path`, and return the paths of the files that the user asked for.

        Raises:
            InputRefused: E_REPORT if the receipt is not of the documented form; no report is written.
            ResourceExhausted: E_WRITE.
        """
        view = opened(receipt, path)
        rendered = [(format.render(view, path), place) for format, place in self._reports()]
        for text, place in rendered:
            place.put(text)
        return [output.path for output in self.wanted if output.path is not None]

    def write_error(self, error: AtlasError) -> None:
        """Write, in every format that can say so, why there is no receipt.

        Raises:
            ResourceExhausted: E_WRITE.
        """
        for format, place in self._reports():
            text = format.render_error(error)
            if text is not None:
                place.put(text)

    def _reports(self) -> tuple[tuple[Format, Destination], ...]:
        return (*(output.report for output in self.wanted), *(github.REPORTS if self.github else ()))


def outputs(
    formats: Sequence[str] = (),
    paths: Sequence[Path] = (),
    *,
    github_actions: bool = False,
    force: bool = False,
    reserved: Sequence[Path] = (),
    inputs: Sequence[Path | None] = (),
) -> Outputs:
    """Read ``--format`` and ``--output``, and refuse early what could not be written late.

    Args:
        formats: ``name`` or ``name=path``.
        paths: files whose suffix tells the format.
        github_actions: whether GitHub Actions is to be told.
        force: replace files that exist.
        reserved: files that the command itself reads or writes.
        inputs: files and checkpoints that it reads, which no report may replace or be put into.

    Raises:
        UsageError: E_FORMAT, E_EXISTS, E_NO_FOLDER, E_OVER_INPUT or E_GITHUB.
    """
    wanted = [*(_from_format(text) for text in formats), *(_from_path(path) for path in paths)]
    if sum(output.path is None for output in wanted) > 1:
        problem = "more than one report would go to standard output"
        raise UsageError("E_FORMAT", "--format", problem, "give all but one a file: --format junit=atlas.xml")
    targets = [output.path for output in wanted if output.path is not None]
    distinct = {os.path.realpath(path) for path in (*targets, *reserved)}
    if len(distinct) < len(targets) + len(reserved):
        problem = "a report names the file of another, or of the receipt"
        raise UsageError("E_FORMAT", "--format", problem, "give each its own file")
    for path in targets:
        require_free(path, force)
    require_apart(targets, inputs)
    if github_actions:
        github.check_environment()
    return Outputs(tuple(wanted), github_actions)


def _from_format(text: str) -> Output:
    name, _, path = text.partition("=")
    if name not in FORMATS:
        hint = f"one of {', '.join(FORMATS)}, or with a file: junit=atlas.xml"
        raise UsageError("E_FORMAT", shown(name), "is not a report format", hint)
    return Output(FormatName(name), Path(path) if path else None)


def _from_path(path: Path) -> Output:
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        hint = f"end its name in {', '.join(SUFFIXES)}, or say --format html={shown(str(path))}"
        raise UsageError("E_FORMAT", shown(str(path)), "does not tell a report format", hint)
    return Output(found, path)
