"""The registered weight rules: which classes of tensors had to change, and which had not to.

Rules speak of values: a tensor in another dtype, layout or order has not changed when its values are the same. Values
that are only rounded to another format count as changed where no change is allowed, and not where one is required.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from moe_atlas.probes.settings.policy import UNREPLAYED
from moe_atlas.text import ranges
from moe_atlas.verdict.gates.gate import FAIL, NOT_APPLICABLE, PASS, UNDETERMINED, Gate
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.registered import WeightRules
from moe_atlas.views.weights import LedgerRow

Outcome = tuple[str, str]  # result and reason
NAMED = 2  # tensors that a reason names
LISTED = 4  # layers with untouched experts that a reason lists
MOST = 0.5  # share of a layer's experts that must have changed


def weight_gates(receipt: ReceiptView) -> list[Gate]:
    """One gate for each rule and class."""
    policy = receipt.probe.policy
    rules = policy.weights or WeightRules({})
    named = {"must_not_change": rules.must_not_change, "must_change": rules.must_change}
    return [
        Gate("weights", result, {"class": name, "rule": rule}, reason=reason)
        for rule, names in named.items()
        for name in names or ()
        for result, reason in [_outcome(receipt, name, rule, policy.allow or ())]
    ]


def _outcome(receipt: ReceiptView, name: str, rule: str, allowed: Sequence[str]) -> Outcome:
    rows = receipt.weights and receipt.weights.tensors
    if not rows:
        return UNDETERMINED, "the weights ledger lists no tensors"
    found, said = [row for row in rows if row.kind == name], name
    tied = [row for row in rows if row.kind == "embedding"]
    if not found and name == "head" and tied:
        found, said = tied, "embedding"
    alone = _alone(receipt) if name == "other" else 0
    if alone and rule == "must_not_change":
        return FAIL, f"{alone} tensors of this class have no counterpart in the other checkpoint"
    if not found:
        return NOT_APPLICABLE, "the checkpoints have no such tensors"
    if any(row.identical is None for row in found):
        return UNDETERMINED, "the ledger does not say how many changed"
    if rule == "must_not_change" and (lone := _lone_rows(receipt, said)) is not None:
        return FAIL, lone
    if rule == "must_not_change":
        return _must_not_change(found, said)
    return _must_change(found, said, frozen_layers="frozen_layers" in allowed)


def _alone(receipt: ReceiptView) -> int:
    """How many tensors that no token passes and a server may use have no counterpart of their shape."""
    rows = (receipt.weights and receipt.weights.unreplayed) or ()
    return sum(row.missing + row.added + row.reshaped for row in rows if row.name in UNREPLAYED)


def _lone_rows(receipt: ReceiptView, name: str) -> str | None:
    """That one checkpoint has rows of embedding or head that the other has not; None where both have the same ids."""
    found = receipt.vocabulary.compared.get(name) if receipt.vocabulary else None
    extra = found and found.extra
    return f"{extra.rows} rows of the {name} are in the {extra.side} alone" if extra else None


def _must_not_change(rows: Sequence[LedgerRow], name: str) -> Outcome:
    """No value of any tensor may have changed."""
    changed = [row for row in rows if not row.identical]
    if not changed:
        return PASS, _count(changed, rows, name)
    names = ", ".join(row.name for row in changed[:NAMED])
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    return FAIL, f"{_count(changed, rows, name)}: {names}{more}"


def _must_change(rows: Sequence[LedgerRow], name: str, *, frozen_layers: bool) -> Outcome:
    """Every layer that has the class must have changed, and in each of them most experts.

    A tune may touch some modules of a layer only (LoRA), and an expert that no training token reached gets no
    gradient; but a layer without any change is where the tune did not land, and a layer where most experts kept their
    values may be one where it did not.
    """
    moved = [row for row in rows if not row.identical and row.rounded is False]
    counted = _count(moved, rows, name) + _rounded(rows)
    layers = {layer: [row for row in rows if row.layer == layer] for layer in _layers(rows)}
    touched = set(_layers(moved))
    untold = {row.layer for row in rows if not row.identical and row.rounded is None}
    untouched = [layer for layer in layers if layer not in touched | untold]
    if untouched and (not touched | untold or not frozen_layers):
        return FAIL, f"{counted}; {_numbered(untouched)} untouched"
    if untold - touched:
        problem = "stored in another format, whose rounding cannot be told from a change"
        return UNDETERMINED, f"{counted}; {_numbered(sorted(untold - touched, key=_order))} {problem}"
    idle = {layer: _idle_experts(layers[layer]) for layer in layers if layer in touched}
    few = [layer for layer, (still, count) in idle.items() if len(still) > (1 - MOST) * count]
    if few:
        return UNDETERMINED, f"{counted}; most experts of {_numbered(few)} untouched"
    return PASS, counted + _still(idle) + (f"; {_numbered(untouched)} untouched" if untouched else "")


def _count(some: Sequence[LedgerRow], rows: Sequence[LedgerRow], name: str) -> str:
    return f"{len(some)} of {len(rows)} {name} tensors changed"


def _rounded(rows: Sequence[LedgerRow]) -> str:
    count = sum(row.rounded is True for row in rows)
    return f", {count} more were only rounded to another dtype" if count else ""


def _layers(rows: Iterable[LedgerRow]) -> list[int | None]:
    return sorted({row.layer for row in rows}, key=_order)


def _order(layer: int | None) -> int:
    return -1 if layer is None else layer


def _idle_experts(rows: Sequence[LedgerRow]) -> tuple[list[int], int]:
    """The experts of a layer of which nothing changed, and how many it has."""
    experts = {row.expert for row in rows if row.expert is not None}
    moved = {row.expert for row in rows if not row.identical and row.rounded is False}
    return sorted(experts - moved), len(experts)


def _still(idle: Mapping[int | None, tuple[list[int], int]]) -> str:
    """Which experts kept their values, layer by layer."""
    found = [(layer, still) for layer, (still, _) in idle.items() if still]
    if not found:
        return ""
    parts = [f"layer {layer}: {ranges(still)}" for layer, still in found[:LISTED]]
    more = f"; and in {len(found) - LISTED} more layers" if len(found) > LISTED else ""
    return f"; untouched experts in {'; '.join(parts)}{more}"


def _numbered(layers: Sequence[int | None]) -> str:
    """Layers in words: ``layers 1–3 and 7``."""
    numbers = [layer for layer in layers if layer is not None]
    if not numbers:
        return "what is outside the layers"
    return f"layer{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"
