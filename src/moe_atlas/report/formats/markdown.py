"""A step summary in Markdown: under 50 lines whatever the receipt holds, and nothing in it can be live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moe_atlas.errors import AtlasError
from moe_atlas.report import words
from moe_atlas.report.head import head
from moe_atlas.report.yardstick import copies
from moe_atlas.text import markdown, number
from moe_atlas.views.judged import Warned
from moe_atlas.views.receipt import ReceiptView

REASONS, DOMAINS, STEPS, WARNINGS = 6, 6, 3, 4
BADGES = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", None: "📌"}


def render(receipt: ReceiptView, path: Path) -> str:
    """Return the summary of a receipt."""
    lines = [
        f"## {BADGES[receipt.verdict]} atlas: {words.verdict(receipt)}",
        "",
        f"{_safe(words.names(receipt), 400)}, probe {_safe(receipt.probe.name)}: {words.sample(receipt)}",
        "",
        *(f"- {_safe(said.line, 400)}" for said in head(receipt, REASONS)),
        *_warnings(receipt.warnings),
        *(["", *_predicates(receipt)] if not receipt.is_baseline else []),
        "",
        *_domains(receipt),
        "",
        *(f"- next: {_safe(words.next_step(step), 400)}" for step in receipt.next_steps[:STEPS]),
        "",
        f"receipt `{receipt.evidence.receipt_sha256}`, check it with `atlas verify` {_safe(path.name)}",
    ]
    return "\n".join(_collapsed(lines)) + "\n"


def render_error(error: AtlasError) -> str:
    """Return the summary of an error."""
    lines = [
        "## ⛔ atlas: could not evaluate",
        "",
        f"- `{error.code}` {_safe(error.where, 300)}: {_safe(error.problem, 600)}",
        *([f"- next: {_safe(error.next_step, 300)}"] if error.next_step else []),
    ]
    return "\n".join(lines) + "\n"


def _safe(text: Any, limit: int = 96) -> str:
    return markdown(str(text), limit)


def _warnings(warnings: Sequence[Warned]) -> list[str]:
    """The first warnings in full, the others by their codes: no condition goes unsaid for want of room."""
    rest = list(dict.fromkeys(warning.code for warning in warnings[WARNINGS:]))
    lines = _cut([f"- ⚠️ {_safe(warning.message, 300)}" for warning in warnings], WARNINGS, "warnings")
    return [*lines[:-1], f"{lines[-1]}: {_safe(', '.join(rest), 300)}"] if rest else lines


def _cut(lines: list[str], most: int, what: str) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most], f"- … and {len(lines) - most} more {what}"]


def _predicates(receipt: ReceiptView) -> Iterable[str]:
    yield "| predicate | | outcome |"
    yield "|---|---|---|"
    for name, predicate in receipt.predicates.items():
        result = words.PASSED[predicate.passed]
        yield f"| {words.PREDICATES[name]} | {words.SYMBOLS[result]} {result} | {_safe(predicate.outcome)} |"


def _domains(receipt: ReceiptView) -> list[str]:
    rows = [
        f"| {_safe(row.name)} | {row.role} | {number(words.estimate(row.nll_base), 4)} | "
        f"{number(words.estimate(row.nll_tuned), 4)} | {words.spelled(row.nll_increase)}{copies(row.nll_increase)} |"
        for row in receipt.domains
    ]
    hidden = len(rows) - DOMAINS
    return [
        "| domain | role | NLL base | NLL tuned | increase |",
        "|---|---|---:|---:|---:|",
        *rows[:DOMAINS],
        *([f"| … {hidden} more | | | | |"] if hidden > 0 else []),
    ]


def _collapsed(lines: list[str]) -> Iterable[str]:
    """No two empty lines in a row."""
    for before, line in zip(["x", *lines], lines, strict=False):
        if line or before:
            yield line
