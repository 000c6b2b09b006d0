"""What a look says beyond its measurements: what is certainly broken or worse, and the documents that lost most.

A look gates nothing. Its findings are those of the gates that no policy can loosen, and losses that certainly rose.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_atlas.derivation.intervals.context import Arrays
from moe_atlas.verdict.damage import non_finite_gate
from moe_atlas.verdict.gates.gate import FAIL, Gate, below_budget, too_few, worst_first
from moe_atlas.verdict.rewrite import stored_gates
from moe_atlas.views.measured import DomainRow, no_interval
from moe_atlas.views.receipt import LookView, ReceiptView
from moe_atlas.views.view import StrangeReceipt

WORST = 5
"""Documents that are named."""


def derive_look(receipt: ReceiptView, windows: Arrays) -> dict[str, Any]:
    """Return the facts of a look with its findings, ``changed`` and the worst documents.

    Args:
        receipt: a receipt of kind ``look`` whose intervals are in place.
        windows: its window arrays.

    Raises:
        StrangeReceipt: it has no facts of a look, or does not name the document of each window.
    """
    found: Any = receipt.facts.get("look")
    look = LookView(found, receipt.at("look"))
    findings = worst_first([gate for gate in _gates(receipt, look.margin) if gate.result == FAIL])
    return dict(look.facts) | {
        "findings": findings,
        "changed": bool(findings),
        "worst_documents": _worst_documents(receipt, look, windows),
    }


def _gates(view: ReceiptView, margin: float) -> list[Gate]:
    losses = [_loss(row, margin) for row in view.domains]
    return [*stored_gates(view), *(non_finite_gate(row) for row in view.domains), *losses]


def _loss(row: DomainRow, margin: float) -> Gate:
    """A domain whose loss certainly rose by more than the margin, on enough documents to say so."""
    increase = row.nll_increase or no_interval()
    return below_budget("nll_increase", {"domain": row.name}, increase, margin, too_few(row.documents), "low")


def _worst_documents(receipt: ReceiptView, look: LookView, windows: Arrays) -> list[dict[str, Any]]:
    """Return the documents whose loss rose most, worst first: domain, name, both losses and the rise."""
    base_W, tuned_W = windows["output.nll_base"], windows["output.nll_tuned"]
    if len(look.documents) != len(base_W):
        raise StrangeReceipt(look.at("documents"), f"{len(base_W)} names", list(look.documents))
    with np.errstate(invalid="ignore"):
        rise_W = tuned_W - base_W
    risen = [number for number in np.argsort(-rise_W, kind="stable") if np.isfinite(rise_W[number])]
    worst = [int(number) for number in risen[:WORST] if rise_W[number] > 0.0]
    return [_document(receipt, look, windows, number) for number in worst]


def _document(receipt: ReceiptView, look: LookView, windows: Arrays, number: int) -> dict[str, Any]:
    base, tuned = (float(windows[f"output.nll_{side}"][number]) for side in ("base", "tuned"))
    return {
        "domain": receipt.probe.domains[int(windows["windows.domain"][number])].name,
        "document": look.documents[number],
        "nll_base": base,
        "nll_tuned": tuned,
        "nll_increase": tuned - base,
    }
