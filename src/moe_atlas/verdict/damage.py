"""Predicate 2: were the base domains damaged?

Per base-role domain: mean paired increase of the next-token NLL below its margin, mean divergence of the next-token
distributions below its limit, and the tail guard on single documents. NaN or infinity anywhere and a canary window
over its own limit are damage whatever the sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_atlas.verdict.gates.gate import (
    FAIL,
    NOT_GATED,
    PASS,
    UNDETERMINED,
    Gate,
    below_budget,
    is_number,
    too_few,
)
from moe_atlas.views.measured import DamagedDocuments, DomainRow, Interval, WorstWindow, no_interval
from moe_atlas.views.receipt import ReceiptView

KL_OF_NLL = 2.0
"""What stands in for a limit of the divergence that nobody registered, in margins of the mean NLL increase.

Half of it for what a change costs, which is its divergence where the base predicts its domain well, half for what a
tune learns beside. See "What cannot be paid for" in the reference.
"""

UNDAMAGED = "undamaged"
DAMAGED = "damaged"


def damage_gates(receipt: ReceiptView) -> list[Gate]:
    """Return every gate of the predicate, over all domains."""
    limits = receipt.probe.policy.damage
    gates = []
    for row in receipt.domains:
        gates.append(non_finite_gate(row))
        if row.role == "base":
            gates += [_mean_gate(row, limits), _divergence_gate(row, limits), _tail_gate(row, limits)]
        elif row.role == "canary":
            gates.append(_canary_gate(row))
    if not receipt.domains_of("base"):
        gates.append(Gate("nll_increase", UNDETERMINED, {}, reason="no base-role domain"))
    return gates


def damage_outcome(gates: list[Gate]) -> str:
    """Return ``undamaged``, ``damaged`` or ``undetermined``; an open limit never passes.

    The divergence alone may be left ungated, by a null that somebody registered.
    """
    if any(gate.result == FAIL for gate in gates):
        return DAMAGED
    held = any(gate.result == PASS for gate in gates)
    return UNDAMAGED if held and all(gate.result in (PASS, NOT_GATED) for gate in gates) else UNDETERMINED


def non_finite_gate(row: DomainRow) -> Gate:
    """NaN or infinity where the base has none; where the base has some, nothing is said of the tuned checkpoint."""
    count, base = row.non_finite_windows, row.non_finite_base
    of = f"of {row.windows} windows"
    line = Gate("non_finite_output", UNDETERMINED, {"domain": row.name})
    if count:
        layer = row.non_finite_layer
        begins = "in the output alone" if layer is None else f"from layer {layer} on"
        return line.came_to(FAIL, f"NaN or infinity in {count} {of}, {begins}, where the base has none")
    if count is None or base is None:
        return line.came_to(UNDETERMINED, "not counted")
    if base:
        return line.came_to(UNDETERMINED, f"the base itself holds NaN or infinity in {base} {of}")
    return line.came_to(PASS)


def _mean_gate(row: DomainRow, limits: Mapping[str, Any]) -> Gate:
    interval = row.nll_increase or no_interval()
    floor = too_few(row.documents)
    gate = below_budget("nll_increase", {"domain": row.name}, interval, limits.get("nll"), floor, "low")
    return gate if gate.result != NOT_GATED else _open("nll_increase", row)


def _divergence_gate(row: DomainRow, limits: Mapping[str, Any]) -> Gate:
    """What cannot be traded: every position's shift counts, while a loss that fell pays for one that rose."""
    where, interval = {"domain": row.name}, row.kl or no_interval()
    if "kl" in limits:
        return below_budget("kl", where, interval, limits["kl"], too_few(row.documents), "low")
    return _stand_in(where, interval, limits.get("nll"))


def _stand_in(where: Mapping[str, Any], interval: Interval, margin: Any) -> Gate:
    """A limit that nobody registered: it gates nothing, and withholds a pass where what was found lies above it."""
    line = Gate("kl", UNDETERMINED, where, interval)
    if not is_number(margin) or not is_number(interval.estimate):
        return line.came_to(UNDETERMINED, interval.reason or "neither damage.kl nor damage.nll is a limit")
    limit = KL_OF_NLL * margin
    if interval.estimate > limit:
        return line.came_to(UNDETERMINED, f"above {limit:g}, twice damage.nll: register damage.kl to decide")
    return line.came_to(NOT_GATED, f"within {limit:g}, twice damage.nll; no damage.kl is registered")


def _tail_gate(row: DomainRow, limits: Mapping[str, Any]) -> Gate:
    """The share of damaged documents, its exact 97.5 % upper bound against the registered share."""
    where, limit = {"domain": row.name}, limits.get("document_share")
    found = row.damaged_documents or DamagedDocuments({})
    if not is_number(limit) or not is_number(limits.get("document_nll")):
        return _open("tail_guard", row)
    interval = Interval({"estimate": found.share, "high": found.share_high})
    line = Gate("tail_guard", UNDETERMINED, where, interval, limit)
    if row.nll_increase and row.nll_increase.exact:
        return line.came_to(PASS, "inputs of equal values")
    floor = too_few(found.documents)
    if floor is not None:
        return line.came_to(UNDETERMINED, floor)
    if is_number(found.share_high) and found.share_high < limit:
        return line.came_to(PASS)
    documents = f"{found.count} of {found.documents} documents"
    return line.came_to(
        UNDETERMINED, f"{documents} above the per-document limit: the share is not bounded tightly"
    )


def _canary_gate(row: DomainRow) -> Gate:
    """Every canary window within its own limit."""
    where, found = {"domain": row.name}, row.worst_window or WorstWindow({})
    limit, worst = found.limit, found.nll_increase
    interval = Interval({"estimate": worst})
    if not is_number(limit):
        return _open("canary", row)
    if found.over:
        return Gate("canary", FAIL, where, interval, limit, f"{found.over} windows over the limit")
    if found.undefined or not is_number(worst):
        return Gate("canary", UNDETERMINED, where, interval, limit, "a window is undefined")
    return Gate("canary", PASS, where, interval, limit)


def _open(gate: str, row: DomainRow) -> Gate:
    return Gate(gate, UNDETERMINED, {"domain": row.name}, reason="no limit registered: never passes")
