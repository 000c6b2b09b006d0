"""Reports for GitHub Actions: the step summary, the outputs of the step, and an annotation of the run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_atlas.errors import AtlasError, UsageError
from moe_atlas.report import words
from moe_atlas.report.formats import markdown
from moe_atlas.report.formats.destinations import AppendedFile, Destination, StandardOutput
from moe_atlas.report.formats.interface import Format
from moe_atlas.report.head import head
from moe_atlas.report.summary import exit_code
from moe_atlas.text import shown, workflow
from moe_atlas.views.receipt import ReceiptView

SUMMARY, OUTPUT = "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"


def check_environment() -> None:
    """Refuse, before the work, a report that could not be written after it.

    Raises:
        UsageError: E_GITHUB outside GitHub Actions.
    """
    for name in (SUMMARY, OUTPUT):
        if not os.environ.get(name):
            hint = "run inside GitHub Actions, or leave --github away"
            raise UsageError("E_GITHUB", name, "is not set in the environment", hint)


class StepOutputs:
    """The outputs of the step: lines of ``name=value``."""

    def render(self, receipt: ReceiptView, path: Path) -> str:
        """Return verdict, exit code, path and sha256 of a receipt."""
        return _lines(
            {
                "verdict": receipt.verdict or receipt.kind,
                "qualified": ",".join(receipt.qualified),
                "exit-code": exit_code(receipt),
                "receipt": path,
                "receipt-sha256": receipt.evidence.receipt_sha256,
            }
        )

    def render_error(self, error: AtlasError) -> str:
        """Return the exit code of an error, under the same names."""
        nothing = {"qualified": "", "exit-code": int(error.exit_code), "receipt": "", "receipt-sha256": ""}
        return _lines({"verdict": "error"} | nothing)


class Annotation:
    """A workflow command that annotates the run: one line, or nothing on a pass that nothing qualifies."""

    def render(self, receipt: ReceiptView, path: Path) -> str:
        """Return the first reason of a verdict other than pass."""
        level = {"fail": "error", "inconclusive": "warning"}.get(str(receipt.verdict), "notice")
        if level == "notice" and not receipt.qualified:
            return ""
        message = next((said.text for said in head(receipt) if said.result != "pass"), "see the step summary")
        return f"::{level} title=atlas {words.verdict(receipt)}::{workflow(message)}\n"

    def render_error(self, error: AtlasError) -> str:
        """Return the message of an error."""
        return f"::error title=atlas could not evaluate::{workflow(str(error))}\n"


REPORTS: tuple[tuple[Format, Destination], ...] = (
    (markdown, AppendedFile(SUMMARY)),
    (StepOutputs(), AppendedFile(OUTPUT)),
    (Annotation(), StandardOutput()),
)
"""The reports of ``--github``, in the order in which they are written."""


def _lines(values: Mapping[str, Any]) -> str:
    """Return ``name=value`` lines; a value stays on its line, whatever it holds."""
    return "".join(f"{name}={shown(str(value), 4096)}\n" for name, value in values.items())
