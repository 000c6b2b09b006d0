"""What GitHub Actions reads: the step summary, the step's outputs, and an annotation on the run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_atlas.errors import AtlasError, ResourceExhausted, UsageError
from moe_atlas.report import words
from moe_atlas.report.formats import markdown
from moe_atlas.report.head import LOSS, head
from moe_atlas.report.summary import exit_code
from moe_atlas.text import shown, workflow

SUMMARY, OUTPUT = "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"


def check_environment() -> None:
    """Refuse before the work what could not be reported after it.

    Raises:
        UsageError: E_GITHUB outside GitHub Actions.
    """
    for name in (SUMMARY, OUTPUT):
        if not os.environ.get(name):
            hint = "run inside GitHub Actions, or leave --github away"
            raise UsageError("E_GITHUB", name, "is not set in the environment", hint)


@dataclass(frozen=True)
class Prepared:
    """What a receipt says to GitHub Actions, worked out before any of it is written.

    Attributes:
        summary: Markdown for the step summary.
        outputs: the step's outputs.
        annotation: the line to print; empty on a pass.
    """

    summary: str
    outputs: Mapping[str, Any]
    annotation: str


def prepared(receipt: Mapping[str, Any], path: Path) -> Prepared:
    """Work out summary, outputs and annotation of a receipt."""
    values = {
        "verdict": receipt["verdict"] or receipt["kind"],
        "exit-code": exit_code(receipt),
        "receipt": path,
        "receipt-sha256": receipt["evidence"]["receipt_sha256"],
    }
    return Prepared(markdown.render(receipt, path), values, _annotation(receipt))


def report(ready: Prepared) -> str:
    """Append summary and outputs, and return the annotation line to print.

    Raises:
        ResourceExhausted: E_WRITE.
    """
    _append(SUMMARY, ready.summary)
    _outputs(ready.outputs)
    return ready.annotation


def _annotation(receipt: Mapping[str, Any]) -> str:
    level = {"fail": "error", "inconclusive": "warning"}.get(str(receipt["verdict"]))
    if level is None:
        return ""
    found = next((said for said in head(receipt) if said.title != LOSS), None)
    message = found.text if found else "see the step summary"
    return f"::{level} title=atlas {words.VERDICTS[receipt['verdict']]}::{workflow(message)}\n"


def report_error(error: AtlasError) -> str:
    """The same for an audit that could not be carried out."""
    _append(SUMMARY, markdown.render_error(error))
    _outputs({"verdict": "error", "exit-code": int(error.exit_code), "receipt": "", "receipt-sha256": ""})
    return f"::error title=atlas could not evaluate::{workflow(str(error))}\n"


def _outputs(values: Mapping[str, Any]) -> None:
    """``name=value`` lines; a value is one line whatever it came from."""
    _append(OUTPUT, "".join(f"{name}={shown(str(value), 4096)}\n" for name, value in values.items()))


def _append(variable: str, text: str) -> None:
    path = os.environ[variable]
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise ResourceExhausted("E_WRITE", f"{variable} {shown(path)}", problem) from error
