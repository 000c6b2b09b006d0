"""Was the task reached: by the tuned checkpoint, and by the base already?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_atlas.verdict.gates.gate import FAIL, PASS, UNDETERMINED, Gate, is_number, too_few

Receipt = Mapping[str, Any]

# metric of a success rule -> the paired difference of a domain, and the bound that shows an improvement
_IMPROVEMENT = {
    "nll": ("nll_increase", "high", -1.0),
    "token_accuracy": ("token_accuracy_gain", "low", 1.0),
    "exact_match": ("exact_match_gain", "low", 1.0),
}


def task_gates(receipt: Receipt) -> list[Gate]:
    """Return one gate a task domain: reached (pass), missed (fail) or undetermined."""
    return [_success_gate(row, "value") for row in _tasks(receipt)]


def base_reached(receipt: Receipt) -> bool | None:
    """Whether the base alone reaches every task's target; None when that is undetermined."""
    return reached([_success_gate(row, "base") for row in _tasks(receipt)])


def base_reaches(receipt: Receipt) -> list[str]:
    """Return the task domains whose target the base alone reaches."""
    return [row["name"] for row in _tasks(receipt) if _success_gate(row, "base").result == PASS]


def reached(gates: Sequence[Gate]) -> bool | None:
    """Whether every task domain reached its target; None when that is undetermined."""
    if any(gate.result == FAIL for gate in gates):
        return False
    return True if gates and all(gate.result == PASS for gate in gates) else None


def task_improved(receipt: Receipt) -> bool:
    """Whether the registered metric of some task domain is better than the base's for certain."""
    return any(_improved(row) for row in _tasks(receipt))


def _tasks(receipt: Receipt) -> list[Mapping[str, Any]]:
    return [row for row in receipt["domains"] if row["role"] == "task"]


def _improved(row: Mapping[str, Any]) -> bool:
    known = _IMPROVEMENT.get((row.get("success") or {}).get("metric", ""))
    if known is None:
        return False
    name, bound, sign = known
    value = (row.get(name) or {}).get(bound)
    return value is not None and is_number(value) and sign * value > 0.0


def _success_gate(row: Mapping[str, Any], side: str) -> Gate:
    """Hold a task's rule against one side of ``success``: ``value`` is the tuned checkpoint, ``base`` the base."""
    found = row.get("success") or {}
    value = found.get(side) or {"reason": "no success rule"}
    upper = is_number(found.get("at_most"))
    limit = found.get("at_most") if upper else found.get("at_least")
    name = f"{found.get('metric')}{'_gain' if found.get('relative_to_base') else ''}"

    line = Gate("task_success", UNDETERMINED, {"domain": row["name"]}, value, limit)
    if limit is None or not is_number(limit) or not is_number(value.get("estimate")):
        return line.came_to(UNDETERMINED, value.get("reason") or "missing")
    if value.get("exact") is True:
        met = value["estimate"] <= limit if upper else value["estimate"] >= limit
        return line.came_to(PASS if met else FAIL, name)
    floor = too_few(row["documents"]) or too_few(value.get("documents"))
    if floor is not None:
        return line.came_to(UNDETERMINED, floor)
    low, high = value.get("low"), value.get("high")
    good, bad = (high, low) if upper else (low, high)
    sign = 1.0 if upper else -1.0
    if is_number(good) and good is not None and sign * good < sign * limit:
        return line.came_to(PASS, name)
    if is_number(bad) and bad is not None and sign * bad > sign * limit:
        return line.came_to(FAIL, name)
    return line.came_to(UNDETERMINED, value.get("reason") or "the interval does not clear the target")
