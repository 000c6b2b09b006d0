"""Was the task reached: by the tuned checkpoint, and by the base already?"""

from __future__ import annotations

from collections.abc import Sequence

from moe_atlas.verdict.gates.gate import FAIL, PASS, UNDETERMINED, Gate, is_number, too_few
from moe_atlas.views.measured import DomainRow, Success, no_interval
from moe_atlas.views.receipt import ReceiptView


def task_gates(receipt: ReceiptView) -> list[Gate]:
    """Return one gate a task domain: reached (pass), missed (fail) or undetermined."""
    return [_success_gate(row, "value") for row in receipt.domains_of("task")]


def base_reached(receipt: ReceiptView) -> bool | None:
    """Whether the base alone reaches every task's target; None when that is undetermined."""
    return reached([_success_gate(row, "base") for row in receipt.domains_of("task")])


def base_reaches(receipt: ReceiptView) -> list[str]:
    """Return the task domains whose target the base alone reaches."""
    return [row.name for row in receipt.domains_of("task") if _success_gate(row, "base").result == PASS]


def reached(gates: Sequence[Gate]) -> bool | None:
    """Whether every task domain reached its target; None when that is undetermined."""
    if any(gate.result == FAIL for gate in gates):
        return False
    return True if gates and all(gate.result == PASS for gate in gates) else None


def task_improved(receipt: ReceiptView) -> bool:
    """Whether the registered metric of some task domain is better than the base's for certain."""
    return any(_improved(row) for row in receipt.domains_of("task"))


def _improved(row: DomainRow) -> bool:
    increase, accuracy, exact = row.nll_increase, row.token_accuracy_gain, row.exact_match_gain
    better = {  # the bound of the paired difference that shows an improvement of the metric
        "nll": increase is not None and is_number(increase.high) and increase.high < 0.0,
        "token_accuracy": accuracy is not None and is_number(accuracy.low) and accuracy.low > 0.0,
        "exact_match": exact is not None and is_number(exact.low) and exact.low > 0.0,
    }
    return row.success is not None and better.get(row.success.metric or "", False)


def _success_gate(row: DomainRow, side: str) -> Gate:
    """Hold a task's rule against one side of ``success``: ``value`` is the tuned checkpoint, ``base`` the base."""
    found = row.success or Success({})
    value = (found.value if side == "value" else found.base) or no_interval("no success rule")
    upper = is_number(found.at_most)
    limit = found.at_most if upper else found.at_least
    name = f"{found.metric}{'_gain' if found.relative_to_base else ''}"

    line = Gate("task_success", UNDETERMINED, {"domain": row.name}, value, limit)
    if not is_number(limit) or not is_number(value.estimate):
        return line.came_to(UNDETERMINED, value.reason or "missing")
    if value.exact:
        met = value.estimate <= limit if upper else value.estimate >= limit
        return line.came_to(PASS if met else FAIL, name)
    floor = too_few(row.documents) or too_few(value.documents)
    if floor is not None:
        return line.came_to(UNDETERMINED, floor)
    good, bad = (value.high, value.low) if upper else (value.low, value.high)
    sign = 1.0 if upper else -1.0
    if is_number(good) and sign * good < sign * limit:
        return line.came_to(PASS, name)
    if is_number(bad) and sign * bad > sign * limit:
        return line.came_to(FAIL, name)
    return line.came_to(UNDETERMINED, value.reason or "the interval does not clear the target")
