"""What a registration can decide: the smallest margin that passes on its documents, and the documents of its margin.

Both need the spread of the documents' *changes* of loss. A base alone has the spread of their losses, which is another
and a far larger spread, because changes are paired. So the caller names a receipt of changes: of a pair, or of a base
with a yardstick.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moe_atlas.probes.lock import Lock, counted
from moe_atlas.receipt.verify import intact_receipt
from moe_atlas.statistics.clopper_pearson import clopper_pearson_upper
from moe_atlas.statistics.power import (
    CHANCE,
    MOST,
    Spread,
    documents_to_pass,
    of_all,
    smallest_margin,
    spread,
)
from moe_atlas.text import number, shown
from moe_atlas.verdict.gates.gate import PASS_FLOOR
from moe_atlas.views.measured import DomainRow, no_interval
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.yardstick import CopiedDomain

ASSUMES = (
    "a tune whose true mean change is 0 in every base domain, whose documents change as unevenly as those of the "
    "receipt, and of which no document is damaged; divergence, canaries and task are left out"
)
WITHOUT = (
    "unknown, as no receipt of changes is named (--changes-from): a base alone gives the spread of losses, not of "
    "their changes"
)


class Changes(NamedTuple):
    """The changes of loss in a receipt.

    Attributes:
        facts: where they come from, for the forecast.
        spreads: the spread of each base domain's changes, or why it has none.
    """

    facts: dict[str, Any]
    spreads: dict[str, Spread | str]


def changes_of(path: Path) -> Changes:
    """Read the changes of an audit's pair, or of the yardstick of a baseline.

    Raises:
        AtlasError: every refusal of `intact_receipt`.
    """
    receipt = ReceiptView(intact_receipt(path))
    rows: Sequence[DomainRow | CopiedDomain] = receipt.domains_of("base")
    kind = "the pair"
    if receipt.is_baseline:
        copied = receipt.yardstick.domains if receipt.yardstick else ()
        rows = [row for row in copied if row.role == "base"]
        kind = "the base and its 4-bit copy"
    found = {
        "receipt": str(path),
        "receipt_sha256": receipt.evidence.receipt_sha256,
        "changes_of": kind,
        "window_tokens": receipt.probe.windows.tokens,
    }
    confidence = receipt.probe.policy.confidence
    return Changes(found, {row.name: _spread(row, confidence) for row in rows})


def _spread(row: DomainRow | CopiedDomain, confidence: float) -> Spread | str:
    """Return the spread of a domain's changes, or why it cannot be told."""
    interval = row.interval("nll_increase") or no_interval()
    estimate, low, high = interval.estimate, interval.low, interval.high
    if interval.exact or (low is not None and low == high):
        return "nothing changed in the receipt"
    if estimate is None or low is None or high is None:
        return f"the receipt has no interval of it: {interval.reason or 'missing'}"
    return spread(
        estimate,
        low,
        high,
        row.documents,
        confidence,
        pass_high=interval.pass_high,
        effective=interval.effective_documents,
    )


def forecast(lock: Lock, changes: Changes | None) -> dict[str, Any]:
    """Return what the registration can decide, domain by domain; what cannot be told is null with a reason."""
    damage = lock.body["probes"]["policy"]["damage"]
    base = [domain for domain in lock.body["domains"] if domain["role"] == "base"]
    rows = [_row(domain, damage, len(base), changes) for domain in base]
    facts = None if changes is None else changes.facts
    return {"chance": CHANCE, "assumes": ASSUMES, "changes_from": facts, "domains": rows}


def _row(
    domain: Mapping[str, Any], damage: Mapping[str, Any], gates: int, changes: Changes | None
) -> dict[str, Any]:
    documents, margin = counted(dict(domain)), damage.get("nll")
    row = {"name": domain["name"], "documents": documents, "margin": margin}
    found = _known(domain["name"], changes)
    if isinstance(found, str):
        return row | {"smallest_margin": None, "documents_needed": None, "reason": found}
    fewest = max(PASS_FLOOR, _unguarded(damage.get("document_share")))
    chance = of_all(CHANCE, gates)
    reasons = []
    smallest: float | None = smallest_margin(found, documents, chance)
    if documents * found.effective < fewest * found.documents:
        smallest, reasons = None, [f"nothing passes on {documents} documents, whatever the margin"]
    needed = None if margin is None else documents_to_pass(found, margin, fewest, chance)
    if margin is None:
        reasons.append("no margin is registered")
    elif needed is None:
        reasons.append(f"the margin needs more than {MOST} documents")
    return row | {
        "smallest_margin": smallest,
        "documents_needed": needed,
        "reason": "; ".join(reasons) or None,
    }


def _known(name: str, changes: Changes | None) -> Spread | str:
    if changes is None:
        return WITHOUT
    return changes.spreads.get(name, "the receipt has no changes of a base domain of this name")


def _unguarded(share: float | None) -> int:
    """Return the fewest documents with which the tail guard passes where no document is damaged."""
    if share is None:
        return 0
    return next((n for n in range(1, 10_000) if clopper_pearson_upper(0, n) < share), 10_000)


def forecast_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The forecast in lines for a person."""
    if found["changes_from"] is None:
        yield f"  power: {WITHOUT}"
        return
    where, kind = shown(str(found["changes_from"]["receipt"])), found["changes_from"]["changes_of"]
    yield f"  power, from the changes of {kind} in {where}; all base domains pass with {found['chance']:.0%} chance:"
    for row in found["domains"]:
        yield f"    {shown(str(row['name']))}: {_said(row)}"
    yield f"    this assumes {found['assumes']}"


def _said(row: Mapping[str, Any]) -> str:
    parts = []
    if row["smallest_margin"] is not None:
        parts.append(f"a margin of {number(row['smallest_margin'])} or more on {row['documents']} documents")
    if row["documents_needed"] is not None:
        parts.append(
            f"the registered margin {number(row['margin'])} on {row['documents_needed']} documents or more"
        )
    return "; ".join([*parts, *([row["reason"]] if row["reason"] else [])])
