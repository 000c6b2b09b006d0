"""Rows of the domains: loss before and after, shift of the output, documents over their limit."""

from __future__ import annotations

from typing import Any

from moe_atlas.report.words import estimate, spelled
from moe_atlas.text import number
from moe_atlas.views.measured import DamagedDocuments
from moe_atlas.views.receipt import ReceiptView


def domains(receipt: ReceiptView) -> list[dict[str, Any]]:
    """NLL and output shift of every domain."""
    return [
        {
            "name": row.name,
            "role": row.role,
            "documents": row.documents,
            "base": number(estimate(row.nll_base), 4),
            "tuned": number(estimate(row.nll_tuned), 4),
            "increase": spelled(row.nll_increase),
            "kl": spelled(row.kl),
            "agreement": spelled(row.top1_agreement),
            "damaged": _damaged(row.damaged_documents),
        }
        for row in receipt.domains
    ]


def _damaged(found: DamagedDocuments | None) -> str:
    if found is None or found.count is None:
        return "–"
    most = "" if found.share_high is None else f" (at most {number(100 * found.share_high)} %)"
    return f"{found.count} of {found.documents}{most}"
