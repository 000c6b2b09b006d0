"""What restricts the meaning of a verdict, whatever the verdict is: one table, which every display reads."""

from __future__ import annotations

from collections.abc import Sequence

from moe_atlas.probes.settings.policy import DAMAGE_STAGE
from moe_atlas.text import shown
from moe_atlas.views.receipt import ReceiptView

QUALIFICATIONS = {DAMAGE_STAGE: "(the atlas was measured, not judged)"}
"""The words that follow a qualified verdict, and the statement of every claim of preservation, by code."""


def derive_qualified(receipt: ReceiptView) -> list[str]:
    """Return the codes that qualify the verdict, in the table's order; a baseline has no verdict to qualify."""
    if receipt.is_baseline:
        return []
    holds = {DAMAGE_STAGE: receipt.probe.policy.stage == DAMAGE_STAGE}
    return [code for code in QUALIFICATIONS if holds[code]]


def marked(text: str, codes: Sequence[str]) -> str:
    """Return a verdict with the codes of its qualifications, for a cell of a table."""
    return " ".join([text, *(f"({shown(str(code))})" for code in codes)])


def in_words(text: str, codes: Sequence[str]) -> str:
    """Return a verdict or a statement with its qualifications; a code of a later version stands for itself."""
    return " ".join([text, *(QUALIFICATIONS.get(code, f"({shown(code)})") for code in codes)])
