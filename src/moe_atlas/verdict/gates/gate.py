"""One gate: an interval against a budget, in three values and fail-closed.

A gate passes only where ``isfinite(high) and high < budget``, a mean by its stricter ``pass_high``; it fails only
where a simultaneous lower bound is above the budget. Whatever is missing, infinite, without variance or on too few
documents is undetermined; what the architecture leaves undefined is not applicable and is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeGuard

from moe_atlas.views.measured import Interval

DOCUMENT_FLOOR = 30  # below this many documents no interval of ours keeps its coverage on skewed damage
# Damage in a tenth of the documents escapes a sample of n with probability 0.9**n, and no interval sees what no
# document shows: below 2.5 % from 36 on. Documents of unequal weight count as fewer.
PASS_FLOOR = 36

PASS = "pass"
FAIL = "fail"
UNDETERMINED = "undetermined"
NOT_APPLICABLE = "not-applicable"
NOT_GATED = "not-gated"

# What the number is called that a gate holds an estimate against; a budget where nothing else is said.
LIMITS = {
    "nll_increase": "margin",
    "kl": "limit",
    "tail_guard": "limit",
    "canary": "limit",
    "task_success": "target",
    "refinement_margin": "floor",
}
_RANK = {FAIL: 0, UNDETERMINED: 1, PASS: 2, NOT_APPLICABLE: 3, NOT_GATED: 4}


def limit_name(gate: str) -> str:
    """Return what people call the number that a gate holds an estimate against."""
    return LIMITS.get(gate, "budget")


@dataclass(frozen=True)
class Gate:
    """One line of evidence.

    Attributes:
        gate: what was gated: a channel, ``refinement_margin``, ``weights``, ``identity``, ``tail_guard`` ...
        result: ``pass``, ``fail``, ``undetermined``, ``not-applicable`` or ``not-gated``.
        where: ``{"layer": 3}`` or ``{"domain": "code"}`` or a tensor class.
        interval: what was measured; None where the gate rests on no number.
        budget: what it was held against.
        reason: why, in a few words, where the numbers do not say it.
    """

    gate: str
    result: str
    where: Mapping[str, Any]
    interval: Interval | None = None
    budget: float | None = None
    reason: str | None = None

    def came_to(self, result: str, reason: str | None = None) -> Gate:
        """Return the line with another result, and why."""
        return replace(self, result=result, reason=reason)

    def evidence(self) -> dict[str, Any]:
        """Return the line as it stands in the receipt."""
        keys = ("estimate", "low", "high", "simultaneous_low")
        numbers = {key: getattr(self.interval, key, None) for key in keys}
        return {"gate": self.gate, **self.where, **numbers, "budget": self.budget, "result": self.result} | {
            "reason": self.reason
        }


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number (a bool is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def below_budget(
    gate: str,
    where: Mapping[str, Any],
    interval: Interval,
    budget: Any,
    floor: str | None,
    fail_on: Literal["simultaneous_low", "low"],
) -> Gate:
    """Hold an interval against an upper budget.

    Args:
        gate: name of the gate.
        where: layer or domain.
        interval: the receipt's interval; None bounds never pass.
        budget: the registered budget; None means that nothing is gated.
        floor: why the sample is too small, None when it is not.
        fail_on: the bound that must exceed the budget to fail: ``simultaneous_low`` across layers, ``low`` in
            a domain.
    """
    line = Gate(gate, UNDETERMINED, where, interval, budget if is_number(budget) else None)
    if budget is None:
        return line.came_to(NOT_GATED, f"no {limit_name(gate)} registered")
    if not is_number(budget):
        return line.came_to(UNDETERMINED, f"the {limit_name(gate)} is not a number")
    if interval.not_applicable:
        return line.came_to(NOT_APPLICABLE, interval.reason)
    if not is_number(interval.estimate):
        return line.came_to(UNDETERMINED, interval.reason or "missing")
    if interval.exact and interval.estimate == 0.0 and budget >= 0:
        return line.came_to(PASS, "inputs of equal values")
    if floor is None:
        floor = too_few(interval.documents)
    if floor is not None:
        return line.came_to(UNDETERMINED, floor)
    fails = interval.low if fail_on == "low" else interval.simultaneous_low
    if is_number(fails) and fails > budget:
        return line.came_to(FAIL)
    if not (is_number(interval.high) and interval.high < budget):
        return line.came_to(
            UNDETERMINED, interval.reason or f"the interval does not clear the {limit_name(gate)}"
        )
    reason = why_no_pass(interval, budget, limit_name(gate))
    return line.came_to(PASS if reason is None else UNDETERMINED, reason)


def why_no_pass(interval: Interval, budget: float, name: str) -> str | None:
    """Return why a mean whose interval clears the budget does not pass all the same, None when it does.

    Args:
        interval: the receipt's interval of the mean.
        budget: what it is held against.
        name: what people call that.
    """
    if not interval.has_pass_bound:
        return None
    bound = interval.pass_high
    effective = float(interval.effective_documents or 0.0)
    if not effective >= PASS_FLOOR - 1e-9:
        return f"its documents weigh as much as {effective:.4g} equal ones, a pass needs {PASS_FLOOR}"
    if is_number(bound) and bound < budget:
        return None
    shown = f"{bound:.4g}" if is_number(bound) else "unbounded"
    return f"the bound that a pass rests on, {shown}, does not clear the {name}"


def too_few(documents: Any) -> str | None:
    """Return the reason for which a sample of documents is too small, None when it is large enough."""
    if is_number(documents) and documents >= DOCUMENT_FLOOR:
        return None
    return f"{documents} documents, fewer than {DOCUMENT_FLOOR}"


def worst_first(gates: Sequence[Gate]) -> list[dict[str, Any]]:
    """Return the evidence lines, failures first, within a result by how far they reach past their budget."""
    return [
        gate.evidence() for gate in sorted(gates, key=lambda gate: (_RANK[gate.result], -_severity(gate)))
    ]


def _severity(gate: Gate) -> float:
    found = gate.interval
    values = () if found is None else (found.simultaneous_low, found.high, found.estimate)
    value = next((float(v) for v in values if is_number(v)), 0.0)
    if gate.gate == "refinement_margin":
        value = -value
    return value / gate.budget if gate.budget else value
