"""What a pipeline needs of a receipt, as JSON values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe_atlas.errors import VERDICT_EXIT, AtlasError
from moe_atlas.report.head import head
from moe_atlas.report.words import all_evidence, understood
from moe_atlas.verdict.qualifications import QUALIFICATIONS
from moe_atlas.views.judged import EvidenceLine
from moe_atlas.views.receipt import ReceiptView


def exit_code(receipt: ReceiptView) -> int:
    """The exit code of the command that wrote this receipt."""
    return int(VERDICT_EXIT[receipt.verdict])


def summary(receipt: ReceiptView, path: Path) -> dict[str, Any]:
    """Verdict, outcomes, head, what failed, what to know and what to do; the same keys for every receipt."""
    return {
        "verdict": receipt.verdict,
        "qualified": {code: QUALIFICATIONS.get(code, code) for code in receipt.qualified},
        "kind": receipt.kind,
        "exit_code": exit_code(receipt),
        "receipt": str(path),
        "receipt_sha256": receipt.evidence.receipt_sha256,
        "predicates": {
            name: {"outcome": predicate.outcome, "passed": predicate.passed}
            for name, predicate in receipt.predicates.items()
        },
        "head": [said.line for said in head(receipt)],
        "failed": [dict(line.facts) for line in _failed(receipt)],
        "warnings": [dict(warning.facts) for warning in receipt.warnings],
        "next_steps": [dict(step.facts) for step in receipt.next_steps],
    }


def _failed(receipt: ReceiptView) -> list[EvidenceLine]:
    """Gates that failed or stayed open: failed ones first, then what a colleague understands at once."""
    lines = [line for line in all_evidence(receipt) if line.result in ("fail", "undetermined")]
    return sorted(lines, key=lambda line: (line.result, understood(line.gate)))


def error_summary(error: AtlasError) -> dict[str, Any]:
    """What stands in place of a summary when no receipt could be written."""
    return {
        "verdict": None,
        "qualified": {},
        "kind": None,
        "exit_code": int(error.exit_code),
        "error": {
            "code": error.code,
            "where": error.where,
            "problem": error.problem,
            "next_step": error.next_step,
        },
    }
