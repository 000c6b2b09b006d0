"""What no probe token says anything of: experts that too few tokens use, and rows of embedding and head.

Nothing shows whether such a change did harm, so an unlikely one leaves the verdict open instead of passing. Two
things need no token to be wrong: rows of a vocabulary that changed places, and a row many times as long as any of
the base's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from statistics import median
from typing import Literal

from moe_atlas.verdict.gates.gate import FAIL, NOT_GATED, PASS, UNDETERMINED, Gate
from moe_atlas.views.measured import ExpertCoverage, LayerView
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.view import StrangeReceipt
from moe_atlas.views.weights import VocabularyRows

Kind = Literal["experts", "router_rows"]

EXPERTS, ROWS = "unmeasured_experts", "vocabulary_rows"
# An expert, or another tensor, that changed more than this multiple of what the others of its kind did, and by more
# than the floor: four-bit storage alone moves every expert by 0.07 of its norm (docs/lab.md).
FACTOR, FLOOR = 3.0, 0.1
# New tokens are a few rows; a vocabulary is many.
FEW_ROWS, FEW_SHARE = 4, 1000
KINDS: dict[Kind, str] = {"experts": "its weights", "router_rows": "its router row"}
NOTHING_SAYS = "no probe token says what that does"


def unseen_gates(receipt: ReceiptView) -> list[Gate]:
    """Return the gates on what the probe does not reach; each is freed by its own name under `policy.allow`."""
    gates = []
    for name, found in ((EXPERTS, _expert_gates(receipt)), (ROWS, _row_gates(receipt))):
        allowed = receipt.probe.policy.allows(name)
        gates += [Gate(name, NOT_GATED, {}, reason="allowed by the policy")] if allowed else found
    return gates


def limit_of(changes: Sequence[float | None]) -> float:
    """Return how far an expert or a tensor may change whose kind changed like this."""
    known = [change for change in changes if change is not None]
    return max(FLOOR, FACTOR * median(known)) if known else FLOOR


def outlying_experts(layer: LayerView, kind: Kind, numbers: Sequence[int]) -> list[int]:
    """Return which of some experts changed far more than those of their layer that tokens reach.

    Where none is reached, the others are all that there is to compare with. A change without a number (of a zero
    base, or to what is not finite) lies out.

    Args:
        layer: the receipt's layer.
        kind: ``experts`` for the experts' own tensors, ``router_rows`` for their rows of the router.
        numbers: the experts asked about.

    Raises:
        StrangeReceipt: the layer lists no change of one of them.
    """
    changes = layer.changes_of(kind)
    if any(number >= len(changes) for number in numbers):
        raise StrangeReceipt(layer.at(f"changes.{kind}"), f"a change of expert {max(numbers)}", [*changes])
    coverage = layer.pair.expert_coverage if layer.pair else None
    unguarded = {*coverage.thin, *coverage.unreached} if coverage else set()
    guarded = [change for number, change in enumerate(changes) if number not in unguarded]
    limit = limit_of(guarded or changes)
    return [number for number in numbers if (change := changes[number]) is None or change > limit]


def _expert_gates(receipt: ReceiptView) -> list[Gate]:
    gates = []
    for layer in receipt.layers:
        coverage = layer.pair.expert_coverage if layer.pair else None
        if coverage is None or layer.changes is None:
            gates.append(Gate(EXPERTS, UNDETERMINED, {"layer": layer.layer}, reason="not compared"))
            continue
        unguarded = sorted([*coverage.thin, *coverage.unreached])
        for kind in KINDS:
            found = outlying_experts(layer, kind, unguarded)
            if found:
                gates.append(_outlying(layer, kind, coverage, found))
    return gates or [Gate(EXPERTS, PASS, {})]


def _outlying(layer: LayerView, kind: Kind, coverage: ExpertCoverage, found: Sequence[int]) -> Gate:
    changes = layer.changes_of(kind)
    worst = max(found, key=lambda number: inf if (change := changes[number]) is None else change)
    more = f", and {len(found) - 1} more experts of the layer" if len(found) > 1 else ""
    few = "no" if worst in coverage.unreached else "hardly any"
    reason = (
        f"{KINDS[kind]} changed by {moved(changes[worst])}{more}; {few} probe token uses it: {NOTHING_SAYS}"
    )
    return Gate(EXPERTS, UNDETERMINED, {"layer": layer.layer, "expert": worst}, reason=reason)


def moved(change: float | None) -> str:
    """Return a relative change of weights in words."""
    return "what has no number" if change is None else f"{change:.3g} of the norm"


def _row_gates(receipt: ReceiptView) -> list[Gate]:
    ends = receipt.vocabulary.compared if receipt.vocabulary else {}
    head = ((receipt.weights and receipt.weights.classes) or {}).get("head")
    stored = ["embedding", *(["head"] if head and head.tensors else [])]
    missing = [
        Gate(ROWS, UNDETERMINED, {"class": name}, reason="its rows were not compared")
        for name in stored
        if name not in ends
    ]
    gates = [gate for name, found in ends.items() for gate in _end_gates(name, found)]
    return [*missing, *gates] or [Gate(ROWS, PASS, {})]


def _end_gates(name: str, found: VocabularyRows) -> Iterator[Gate]:
    where, outlying = {"class": name}, found.outlying.seen + found.outlying.unseen
    if found.permuted > 1:
        ids = _ids(found, moved_only=True)
        reason = f"{found.permuted} rows hold other rows of the base, whose places changed, too{ids}"
        yield Gate(ROWS, FAIL, where, reason=reason)
    if found.far_longer:
        reason = f"{found.far_longer} rows are over ten times as long as the longest of the base{_ids(found)}"
        yield Gate(ROWS, FAIL, where, reason=reason)
    extra = found.extra
    if extra and extra.side == "tuned" and extra.far_longer:
        reason = (
            f"{extra.far_longer} of the {extra.rows} rows that the tuned checkpoint alone has, from id "
            f"{extra.first} on, are over ten times as long as the longest of the base"
        )
        yield Gate(ROWS, FAIL, where, reason=reason)
    if outlying > max(FEW_ROWS, found.rows // FEW_SHARE):
        unseen = found.outlying.unseen
        reason = f"{outlying} rows were replaced or nearly, {unseen} of them of ids in no probe window{_ids(found)}"
        yield Gate(ROWS, UNDETERMINED, where, reason=f"{reason}: {NOTHING_SAYS}" if unseen else reason)


def _ids(found: VocabularyRows, *, moved_only: bool = False) -> str:
    """Some ids of outlying rows, or of rows that changed places, with their names where they have any."""
    rows = [row for row in found.named if (row.was is not None if moved_only else row.outlying)][:4]
    shown = ", ".join(f"{row.id} ({row.name})" if row.name else str(row.id) for row in rows)
    return f" (ids {shown} …)" if shown else ""
