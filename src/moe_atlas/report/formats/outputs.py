"""Where reports go: ``--format name[=path]``, several at once, checked before the work and written after it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_atlas.errors import AtlasError, InputRefused, ResourceExhausted, UsageError
from moe_atlas.receipt.files import require_apart, require_free
from moe_atlas.report.formats import github, junit, markdown
from moe_atlas.report.summary import error_summary, summary
from moe_atlas.system.atomic_write import write_atomic
from moe_atlas.text import shown

FORMATS = ("json", "markdown", "junit", "html")
SUFFIXES = {".json": "json", ".md": "markdown", ".xml": "junit", ".html": "html", ".htm": "html"}


@dataclass(frozen=True)
class Output:
    """One report that was asked for.

    Attributes:
        format: one of `FORMATS`.
        path: where it goes; None is standard output.
    """

    format: str
    path: Path | None


@dataclass(frozen=True)
class Outputs:
    """All reports of a command.

    Attributes:
        wanted: in the order asked for.
        github: whether to report to GitHub Actions as well.
    """

    wanted: tuple[Output, ...] = ()
    github: bool = False

    @property
    def on_stdout(self) -> bool:
        """Whether one of them takes standard output."""
        return any(output.path is None for output in self.wanted)

    def write(self, receipt: Mapping[str, Any], path: Path) -> list[Path]:
        """Write every report of a receipt; what goes to standard output is printed.

        Raises:
            ResourceExhausted: E_WRITE.
        """
        self._emit([(output, _rendered(output.format, receipt, path)) for output in self.wanted])
        if self.github:
            with readable(path):
                report = github.prepared(receipt, path)
            _print(github.report(report))
        return [output.path for output in self.wanted if output.path is not None]

    def write_error(self, error: AtlasError) -> None:
        """Write what a pipeline should read when there is no receipt; HTML has nothing to show then."""
        rendered = {
            "json": json.dumps(error_summary(error), indent=2) + "\n",
            "markdown": markdown.render_error(error),
            "junit": junit.render_error(error),
        }
        self._emit([(one, rendered[one.format]) for one in self.wanted if one.format in rendered])
        if self.github:
            _print(github.report_error(error))

    def _emit(self, rendered: Iterable[tuple[Output, str]]) -> None:
        for output, text in rendered:
            if output.path is None:
                _print(text)
                continue
            with writing(output.path):
                write_atomic(output.path, text.encode("utf-8"))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the report that could not be written.

    Raises:
        ResourceExhausted: E_WRITE.
    """
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        hint = "what it reports on stands; write it again"
        raise ResourceExhausted("E_WRITE", shown(str(path)), problem, hint) from error


def _print(text: str) -> None:
    """On standard output; a reader that went away does not change what the receipt says."""
    with contextlib.suppress(OSError):
        print(text, end="", flush=True)


# The schema says what a fact looks like, not that it is there: a receipt that re-derives may lack what a report shows.
_STRANGE = (KeyError, IndexError, TypeError, ValueError, AttributeError)


@contextlib.contextmanager
def readable(*paths: Path) -> Iterator[None]:
    """Refuse a receipt (of several, one) that lacks what this version would show, or holds it in another form.

    Raises:
        InputRefused: E_REPORT.
    """
    try:
        yield
    except _STRANGE as error:
        problem = f"holds facts that cannot be shown ({type(error).__name__}: {shown(str(error))})"
        hint = "its verdict stands if atlas verify says so; report it with the version that wrote it"
        label = " or ".join(shown(str(path)) for path in paths)
        raise InputRefused("E_REPORT", label, problem, hint) from error


def _rendered(name: str, receipt: Mapping[str, Any], path: Path) -> str:
    with readable(path):
        return _render(name, receipt, path)


def _render(name: str, receipt: Mapping[str, Any], path: Path) -> str:
    if name == "json":
        return json.dumps(summary(receipt, path), indent=2) + "\n"
    if name == "markdown":
        return markdown.render(receipt, path)
    if name == "junit":
        return junit.render(receipt)
    from moe_atlas.report.html import audit_page  # matplotlib: only when it is asked for

    return audit_page(receipt, path)


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
    return Output(name, Path(path) if path else None)


def _from_path(path: Path) -> Output:
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        hint = f"end its name in {', '.join(SUFFIXES)}, or say --format html={shown(str(path))}"
        raise UsageError("E_FORMAT", shown(str(path)), "does not tell a report format", hint)
    return Output(found, path)
