"""What restricts the meaning of a verdict, whatever the verdict is: one table, which every display reads."""

from __future__ import annotations

from collections.abc import Sequence

from moe_atlas.probes.settings.policy import DAMAGE_STAGE
from moe_atlas.text import shown
from moe_atlas.views.receipt import LOOK, ReceiptView
from moe_atlas.views.registered import Policy, ProvisionalOrigin

PROVISIONAL = "provisional-budgets"
QUALIFICATIONS = {
    DAMAGE_STAGE: "(the atlas was measured, not judged)",
    PROVISIONAL: "under provisional budgets",
    LOOK: "(a look, not a verdict)",
}
"""The words that follow a qualified verdict, and the statement of every claim of preservation, by code."""


def derive_qualified(receipt: ReceiptView) -> list[str]:
    """Return the codes that qualify the verdict, in the table's order; a baseline has no verdict to qualify."""
    if receipt.is_baseline:
        return []
    policy = receipt.probe.policy
    holds = {
        DAMAGE_STAGE: policy.stage == DAMAGE_STAGE,
        PROVISIONAL: provisional_origin(policy) is not None,
        LOOK: receipt.is_look,
    }
    return [code for code in QUALIFICATIONS if holds[code]]


def provisional_origin(policy: Policy) -> ProvisionalOrigin | None:
    """Return what the budgets of a policy were derived from, if that is the base alone."""
    return None if policy.set_for is None else policy.set_for.from_base


def marked(text: str, codes: Sequence[str]) -> str:
    """Return a verdict with the codes of its qualifications, for a cell of a table."""
    return " ".join([text, *(f"({shown(str(code))})" for code in codes)])


def in_words(text: str, codes: Sequence[str]) -> str:
    """Return a verdict or a statement with its qualifications; a code of a later version stands for itself."""
    return " ".join([text, *(QUALIFICATIONS.get(code, f"({shown(code)})") for code in codes)])
