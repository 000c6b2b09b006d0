"""Where the text of a report goes: standard output, a file, or the end of a file that an environment variable names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moe_atlas.errors import ResourceExhausted
from moe_atlas.system.atomic_write import write_atomic
from moe_atlas.text import shown


class Destination(Protocol):
    """A place that takes the text of a report."""

    def put(self, text: str, /) -> None:
        """Put the text there.

        Raises:
            ResourceExhausted: E_WRITE.
        """


@dataclass(frozen=True)
class StandardOutput:
    """Standard output; a reader that has left does not change what the receipt says."""

    def put(self, text: str) -> None:
        """Print the text."""
        with contextlib.suppress(OSError):
            print(text, end="", flush=True)


@dataclass(frozen=True)
class File:
    """A file, replaced as a whole.

    Attributes:
        path: path of the file.
    """

    path: Path

    def put(self, text: str) -> None:
        """Write the file."""
        with writing(self.path):
            write_atomic(self.path, text.encode("utf-8"))


@dataclass(frozen=True)
class AppendedFile:
    """The end of a file to which other steps of a job also append.

    Attributes:
        variable: the environment variable that holds the path of the file.
    """

    variable: str

    def put(self, text: str) -> None:
        """Append the text."""
        path = os.environ[self.variable]
        try:
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(text)
        except OSError as error:
            problem = f"cannot be written ({error.strerror})"
            raise ResourceExhausted("E_WRITE", f"{self.variable} {shown(path)}", problem) from error


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
