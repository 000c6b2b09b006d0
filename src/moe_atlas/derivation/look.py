"""What a look says beyond its measurements: what is certainly broken or worse, and the documents that lost most.

A look gates nothing. Its findings are those of the gates that no policy can loosen, and losses that certainly rose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_atlas.derivation.intervals.context import Arrays, Facts
from moe_atlas.verdict.damage import non_finite_gate
from moe_atlas.verdict.gates.gate import FAIL, Gate, below_budget, too_few, worst_first
from moe_atlas.verdict.rewrite import stored_gates
from moe_atlas.views.measured import DomainRow, no_interval
from moe_atlas.views.receipt import ReceiptView

WORST = 5
"""Documents that are named."""


def derive_look(receipt: Facts, windows: Arrays) -> dict[str, Any]:
    """Return the facts of a look with its findings, ``changed`` and the worst documents.

    Args:
        receipt: a receipt of kind ``look`` whose intervals are in place.
        windows: its window arrays.
    """
    view = ReceiptView(receipt)
    findings = worst_first([gate for gate in _gates(view, receipt["look"]["margin"]) if gate.result == FAIL])
    return dict(receipt["look"]) | {
        "findings": findings,
        "changed": bool(findings),
        "worst_documents": worst_documents(receipt, windows),
    }


def _gates(view: ReceiptView, margin: float) -> list[Gate]:
    losses = [_loss(row, margin) for row in view.domains]
    return [*stored_gates(view), *(non_finite_gate(row) for row in view.domains), *losses]


def _loss(row: DomainRow, margin: float) -> Gate:
    """A domain whose loss certainly rose by more than the margin, on enough documents to say so."""
    increase = row.nll_increase or no_interval()
    return below_budget("nll_increase", {"domain": row.name}, increase, margin, too_few(row.documents), "low")


def worst_documents(receipt: Facts, windows: Arrays) -> list[dict[str, Any]]:
    """Return the documents whose loss rose most, worst first: domain, name, both losses and the rise."""
    base_W, tuned_W = windows["output.nll_base"], windows["output.nll_tuned"]
    with np.errstate(invalid="ignore"):
        rise_W = tuned_W - base_W
    risen = [number for number in np.argsort(-rise_W, kind="stable") if np.isfinite(rise_W[number])]
    return [_document(receipt, windows, number) for number in risen[:WORST] if rise_W[number] > 0.0]


def _document(receipt: Facts, windows: Arrays, number: Any) -> dict[str, Any]:
    domains: list[Mapping[str, Any]] = receipt["probe"]["domains"]
    base, tuned = (float(windows[f"output.nll_{side}"][number]) for side in ("base", "tuned"))
    return {
        "domain": domains[int(windows["windows.domain"][number])]["name"],
        "document": receipt["look"]["documents"][number],
        "nll_base": base,
        "nll_tuned": tuned,
        "nll_increase": tuned - base,
    }
