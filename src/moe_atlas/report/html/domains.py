"""Rows of the domains: loss before and after, shift of the output, documents over their limit."""

from __future__ import annotations

from typing import Any

from moe_atlas.report.figures import times
from moe_atlas.report.words import estimate, spelled
from moe_atlas.report.yardstick import copies
from moe_atlas.text import number
from moe_atlas.views.measured import DamagedDocuments, DomainRow
from moe_atlas.views.receipt import ReceiptView

TOP = 3  # domains of each role at the top of the page
FULL = 2.0  # margins that fill a bar


def domains(receipt: ReceiptView) -> list[dict[str, Any]]:
    """NLL and output shift of every domain."""
    margin = receipt.probe.policy.margin("nll")
    return [
        {
            "name": row.name,
            "role": row.role,
            "documents": row.documents,
            "base": number(estimate(row.nll_base), 4),
            "tuned": number(estimate(row.nll_tuned), 4),
            "increase": f"{spelled(row.nll_increase)}{copies(row.nll_increase)}",
            "times": times(estimate(row.nll_increase), margin) if row.role == "base" else "",
            "kl": f"{spelled(row.kl)}{copies(row.kl)}",
            "agreement": spelled(row.top1_agreement),
            "damaged": _damaged(row.damaged_documents),
        }
        for row in receipt.domains
    ]


def worst_first(receipt: ReceiptView) -> list[dict[str, str]]:
    """The change of loss of base and task domains in one line each, for the top of the page: base domains first."""
    gates = receipt.predicates["base_domain_damage"].evidence
    results = {line.domain: line.result for line in gates if line.gate == "nll_increase"}
    return [
        _top(row, receipt, results.get(row.name))
        for role in ("base", "task")
        for row in _worst(receipt, role)
    ]


def _worst(receipt: ReceiptView, role: str) -> list[DomainRow]:
    known = [row for row in receipt.domains_of(role) if estimate(row.nll_increase) is not None]
    return sorted(known, key=lambda row: -(estimate(row.nll_increase) or 0.0))[:TOP]


def _top(row: DomainRow, receipt: ReceiptView, result: str | None) -> dict[str, str]:
    change = estimate(row.nll_increase) or 0.0
    margin = receipt.probe.policy.margin("nll") if row.role == "base" else None
    often = times(change, margin)
    return {
        "name": row.name,
        "role": row.role,
        "change": f"{'+' if change > 0 else ''}{number(change)}",
        "held": f"{often} margin" if often else "",
        "result": (result or "not-gated") if margin is not None else "not-gated",
        "share": str(round(100 * min(1.0, max(0.0, change / (FULL * margin))))) if margin else "0",
    }


def _damaged(found: DamagedDocuments | None) -> str:
    if found is None or found.count is None:
        return "–"
    most = "" if found.share_high is None else f" (at most {number(100 * found.share_high)} %)"
    return f"{found.count} of {found.documents}{most}"
