"""Rows of the predicates, their evidence and the claims that follow."""

from __future__ import annotations

from typing import Any

from moe_atlas.report.figures import limit
from moe_atlas.report.sentences import unjudged
from moe_atlas.report.words import (
    OUTCOMES,
    PASSED,
    PREDICATES,
    SYMBOLS,
    gate_name,
    grouped,
    place,
    spelled,
)
from moe_atlas.report.yardstick import copies
from moe_atlas.text import number
from moe_atlas.views.judged import EvidenceLine, PredicateView
from moe_atlas.views.receipt import ReceiptView

CLAIM_SYMBOLS = {"licensed": "✓", "contradicted": "✗", "unlicensed": "–"}
NAMED = ("fail", "undetermined", "not-applicable")


def predicates(receipt: ReceiptView) -> list[dict[str, Any]]:
    """The three predicates with their evidence in groups and line by line."""
    return [
        _predicate(name, predicate)
        | {"unjudged": unjudged(receipt) if name == "protected_atlas_rewrite" else ""}
        for name, predicate in receipt.predicates.items()
    ]


def _predicate(name: str, predicate: PredicateView) -> dict[str, Any]:
    groups = grouped(predicate.evidence)
    return {
        "name": PREDICATES[name],
        "outcome": predicate.outcome,
        "meaning": OUTCOMES.get(predicate.outcome),
        "result": PASSED[predicate.passed],
        "symbol": SYMBOLS[PASSED[predicate.passed]],
        "reason": predicate.reason,
        "groups": [
            {"result": group.result, "symbol": SYMBOLS[group.result], "sentence": group.sentence}
            for group in groups
            if group.result in NAMED
        ],
        "passing": sorted({gate_name(group.gate) for group in groups if group.result == "pass"}),
        "lines": [_line(line) for line in predicate.evidence],
    }


def _line(line: EvidenceLine) -> dict[str, Any]:
    return {
        "gate": gate_name(line.gate),
        "place": place(line),
        "interval": f"{spelled(line)}{copies(line)}",
        "bound": number(line.simultaneous_low),
        "budget": limit(line) or "–",
        "result": line.result,
        "symbol": SYMBOLS[line.result],
        "reason": line.reason or "",
    }


def claims(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Claims, licensed ones first."""
    order = list(CLAIM_SYMBOLS)
    return [
        {
            "statement": claim.statement,
            "status": claim.status,
            "symbol": CLAIM_SYMBOLS[claim.status],
            "number": spelled(claim) if claim.estimate is not None else "",
            "layer": claim.layer,
            "silent": claim.does_not_say,
        }
        for claim in sorted(receipt.claims, key=lambda claim: order.index(claim.status))
    ]
