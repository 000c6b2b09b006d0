"""What a report format does, and the formats that a user may ask for."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Protocol

from moe_atlas.errors import AtlasError
from moe_atlas.views.receipt import ReceiptView


class FormatName(StrEnum):
    """The format names of ``--format``."""

    JSON = "json"
    MARKDOWN = "markdown"
    JUNIT = "junit"
    HTML = "html"


class Format(Protocol):
    """A report format: a module or an object with these two functions."""

    def render(self, receipt: ReceiptView, path: Path, /) -> str:
        """Return the report of the receipt at `path`."""

    def render_error(self, error: AtlasError, /) -> str | None:
        """Return the report of an audit that ended in an error; None if the format has none."""
