"""Predicate 1: was the protected atlas rewritten?

Over the protected layers: the four drift channels, the fall of overlap and the three occupancy differences below
budget, the refinement margin above 0, weights ledger and expert identity not breached, no non-finite weight in
the tuned checkpoint. A rising set margin (State1) is no evidence here.
"""

from __future__ import annotations

from moe_atlas.channels import GATED, REGISTERED
from moe_atlas.verdict.gates.gate import (
    FAIL,
    NOT_APPLICABLE,
    NOT_GATED,
    PASS,
    UNDETERMINED,
    Gate,
    below_budget,
    is_number,
    too_few,
)
from moe_atlas.verdict.gates.unreached_weights import unseen_gates
from moe_atlas.verdict.gates.unreplayed_parts import unreplayed_gates
from moe_atlas.verdict.gates.weight_rules import weight_gates
from moe_atlas.views.measured import WorstExpert, no_interval
from moe_atlas.views.receipt import ReceiptView

PRESERVED = "preserved"
REWRITTEN = "rewritten"
NOT_JUDGED = "not-judged"

# No declared stage excuses a breach of these, or leaves them open.
HARD = ("weights", "identity", "non_finite_weights", "unreplayed", "unmeasured_experts", "vocabulary_rows")


def atlas_gates(receipt: ReceiptView) -> list[Gate]:
    """Return every gate of the predicate."""
    floor = base_floor(receipt)
    return [
        *_layer_gates(receipt, floor),
        _refinement_gate(receipt, floor),
        *stored_gates(receipt),
    ]


def stored_gates(receipt: ReceiptView) -> list[Gate]:
    """Return the gates on the tensors themselves, which no declared stage excuses."""
    return [
        *weight_gates(receipt),
        *_non_finite_gates(receipt),
        *unreplayed_gates(receipt),
        *_identity_gates(receipt),
        *unseen_gates(receipt),
    ]


def atlas_outcome(gates: list[Gate], *, judged: bool = True) -> str:
    """Return ``preserved``, ``rewritten``, ``not-judged`` or ``undetermined``.

    Preserved needs at least one channel that was measured and held: nothing audited is never a pass.

    Args:
        gates: the predicate's gates.
        judged: whether the stage judges the atlas; where it does not, no channel has to hold, and nothing preserves it.
    """
    if any(gate.result == FAIL for gate in gates):
        return REWRITTEN
    channels = {channel.budget for channel in REGISTERED}
    held = any(gate.result == PASS and gate.gate in channels for gate in gates)
    settled = all(gate.result in (PASS, NOT_APPLICABLE, NOT_GATED) for gate in gates)
    if not judged:
        return NOT_JUDGED if settled else UNDETERMINED
    return PRESERVED if held and settled else UNDETERMINED


def base_floor(receipt: ReceiptView) -> str | None:
    """Return why the base-role sample is too small, None when every base domain has enough documents."""
    rows = receipt.domains_of("base")
    if not rows:
        return "no base-role domain"
    for row in rows:
        reason = too_few(row.documents)
        if reason is not None:
            return f"domain {row.name}: {reason}"
    return None


def _layer_gates(receipt: ReceiptView, floor: str | None) -> list[Gate]:
    measured = {layer.layer: layer for layer in receipt.layers}
    protected = receipt.probe.protected_layers
    if not protected:
        return [Gate("protected_layers", UNDETERMINED, {}, reason="no layer is protected")]
    gates = []
    for number in protected:
        where = {"layer": number}
        if number not in measured:
            gates.append(Gate("protected_layers", UNDETERMINED, where, reason="not a measured routed layer"))
            continue
        for channel in GATED:
            found = measured[number].channel(channel.key) or no_interval()
            expert = found.expert if isinstance(found, WorstExpert) else None
            place = where if expert is None else where | {"expert": expert}
            budget = receipt.probe.policy.budget(channel.budget)
            gates.append(below_budget(channel.budget, place, found, budget, floor, "simultaneous_low"))
    return gates


def _refinement_gate(receipt: ReceiptView, floor: str | None) -> Gate:
    """The margin must lie above 0; below 0 for certain is a rewrite."""
    margin = (receipt.margins and receipt.margins.refinement_margin) or no_interval()
    where = {} if margin.layer is None else {"layer": margin.layer}
    line = Gate("refinement_margin", UNDETERMINED, where, margin, 0.0)
    if receipt.probe.policy.rewrite.refinement is None:
        return line.came_to(NOT_GATED, "no weights registered")
    if margin.not_applicable:
        return line.came_to(NOT_APPLICABLE, margin.reason)
    if not is_number(margin.estimate):
        return line.came_to(UNDETERMINED, margin.reason)
    if margin.exact and margin.estimate > 0.0:
        return line.came_to(PASS, "inputs of equal values")
    floor = floor or too_few(margin.documents)
    if floor is not None:
        return line.came_to(UNDETERMINED, floor)
    if is_number(margin.high) and margin.high < 0.0:
        return line.came_to(FAIL)
    if is_number(margin.low) and margin.low > 0.0:
        return line.came_to(PASS)
    return line.came_to(UNDETERMINED, margin.reason or "the interval does not clear 0")


def _non_finite_gates(receipt: ReceiptView) -> list[Gate]:
    classes = receipt.weights and receipt.weights.classes
    if not classes:
        return [Gate("non_finite_weights", UNDETERMINED, {}, reason="no weights ledger")]
    gates = []
    for name, entry in classes.items():
        if not entry.tensors:
            continue
        count = None if entry.nonfinite is None else entry.nonfinite.tuned
        if count is None:
            gates.append(Gate("non_finite_weights", UNDETERMINED, {"class": name}, reason="not counted"))
        elif count > 0:
            reason = f"{count} non-finite values in the tuned checkpoint"
            gates.append(Gate("non_finite_weights", FAIL, {"class": name}, reason=reason))
    return gates or [Gate("non_finite_weights", PASS, {})]


def _identity_gates(receipt: ReceiptView) -> list[Gate]:
    breaches = receipt.identity.breaches if receipt.identity else None
    if breaches is None:
        return [Gate("identity", UNDETERMINED, {}, reason="expert identity was not examined")]
    gates = [
        Gate("identity", FAIL, {"layer": breach.layer}, reason=f"{breach.kind}: {breach.detail}")
        for breach in breaches
    ]
    return gates or [Gate("identity", PASS, {})]
