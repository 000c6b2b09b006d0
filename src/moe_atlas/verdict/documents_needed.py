"""How many documents would decide the gates that stayed open, with the spread that the audit measured.

Only means with a bound of their own for a pass are asked: drift channels, overlap, losses, a registered limit of KL.
The true change is taken to be the estimate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from moe_atlas.channels import BUDGETS
from moe_atlas.statistics.power import documents_to_fail, documents_to_pass, spread
from moe_atlas.verdict.gates.gate import DOCUMENT_FLOOR, PASS_FLOOR, UNDETERMINED
from moe_atlas.views.judged import EvidenceLine
from moe_atlas.views.measured import Interval
from moe_atlas.views.receipt import ReceiptView

DOMAIN_GATES = ("nll_increase", "kl")


class Needed(NamedTuple):
    """What one open gate needs.

    Attributes:
        gate: the gate.
        where: its domain or layer, in words.
        documents: the documents that it rests on.
        needed: the documents that would decide it; None if no registration could hold so many.
        outcome: what they would decide, ``pass`` or ``fail``.
    """

    gate: str
    where: str
    documents: int
    needed: int | None
    outcome: str

    @property
    def factor(self) -> float:
        """How many times the documents; infinite where no number is enough."""
        return float("inf") if self.needed is None else self.needed / self.documents


def most_wanting(receipt: ReceiptView) -> Needed | None:
    """Return the open gate that needs the largest multiple of its documents; None if no open gate rests on a mean."""
    lines = (line for predicate in receipt.predicates.values() for line in predicate.evidence)
    found = [
        needed
        for line in lines
        if line.result == UNDETERMINED
        for where, interval in _intervals(receipt, line)
        for needed in _needed(receipt, line, where, interval)
    ]
    return max(found, key=lambda needed: needed.factor, default=None)


def _intervals(receipt: ReceiptView, line: EvidenceLine) -> Iterator[tuple[str, Interval]]:
    """Yield the mean that a line of evidence was held against, if it is one."""
    if line.gate in DOMAIN_GATES and line.domain is not None:
        rows = (row for row in receipt.domains_of("base") if row.name == line.domain)
        for row in rows:
            interval = row.nll_increase if line.gate == "nll_increase" else row.kl
            if interval is not None:
                yield f"domain {row.name}", interval
    if line.gate in BUDGETS and line.layer is not None:
        layers = (layer for layer in receipt.layers if layer.layer == line.layer)
        for layer in layers:
            interval = layer.channel(BUDGETS[line.gate].key)
            if interval is not None:
                yield f"layer {layer.layer}", interval


def _needed(receipt: ReceiptView, line: EvidenceLine, where: str, interval: Interval) -> Iterator[Needed]:
    estimate, low, high, documents = interval.estimate, interval.low, interval.high, interval.documents
    budget = line.budget
    if not interval.has_pass_bound or not documents or budget is None:
        return
    if estimate is None or low is None or high is None:
        return
    found = spread(
        estimate,
        low,
        high,
        documents,
        receipt.probe.policy.confidence,
        pass_high=interval.pass_high,
        fail_low=interval.simultaneous_low,
        effective=interval.effective_documents,
    )
    if estimate < budget:
        needed = documents_to_pass(found, budget - estimate, PASS_FLOOR)
        yield Needed(line.gate, where, documents, needed, "pass")
    else:
        needed = documents_to_fail(found, estimate - budget, DOCUMENT_FLOOR)
        yield Needed(line.gate, where, documents, needed, "fail")
