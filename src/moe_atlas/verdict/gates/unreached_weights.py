"""What no probe token says anything of: experts that too few tokens use, and rows of embedding and head.

Nothing shows whether such a change did harm, so an unlikely one leaves the verdict open instead of passing. Two
things need no token to be wrong: rows of a vocabulary that changed places, and a row many times as long as any of
the base's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from moe_atlas.verdict.gates.gate import FAIL, NOT_GATED, PASS, UNDETERMINED, Gate

Receipt = Mapping[str, Any]

EXPERTS, ROWS = "unmeasured_experts", "vocabulary_rows"
# An expert, or another tensor, that changed more than this multiple of what the others of its kind did, and by more
# than the floor: four-bit storage alone moves every expert by 0.07 of its norm (docs/lab.md).
FACTOR, FLOOR = 3.0, 0.1
# New tokens are a few rows; a vocabulary is many.
FEW_ROWS, FEW_SHARE = 4, 1000
NOTHING_SAYS = "no probe token says what that does"


def unseen_gates(receipt: Receipt) -> list[Gate]:
    """Return the gates on what the probe does not reach; each is freed by its own name under `policy.allow`."""
    gates = []
    for name, found in ((EXPERTS, _expert_gates(receipt)), (ROWS, _row_gates(receipt))):
        allowed = name in (receipt["probe"]["policy"].get("allow") or ())
        gates += [Gate(name, NOT_GATED, {}, {}, None, "allowed by the policy")] if allowed else found
    return gates


def limit_of(changes: Sequence[float | None]) -> float:
    """Return how far an expert or a tensor may change whose kind changed like this."""
    known = [change for change in changes if change is not None]
    return max(FLOOR, FACTOR * median(known)) if known else FLOOR


def outlying_experts(layer: Mapping[str, Any], kind: str, numbers: Sequence[int]) -> list[int]:
    """Return which of some experts changed far more than those of their layer that tokens reach.

    Where none is reached, the others are all that there is to compare with. A change without a number (of a zero
    base, or to what is not finite) lies out.

    Args:
        layer: the receipt's layer.
        kind: ``experts`` for the experts' own tensors, ``router_rows`` for their rows of the router.
        numbers: the experts asked about.
    """
    changes, coverage = layer["changes"][kind], layer["pair"]["expert_coverage"]
    unguarded = {*coverage["thin"], *coverage["unreached"]}
    guarded = [change for number, change in enumerate(changes) if number not in unguarded]
    limit = limit_of(guarded or changes)
    return [number for number in numbers if changes[number] is None or changes[number] > limit]


def _expert_gates(receipt: Receipt) -> list[Gate]:
    gates = []
    for layer in receipt["layers"]:
        coverage = (layer.get("pair") or {}).get("expert_coverage")
        if coverage is None or not layer.get("changes"):
            gates.append(Gate(EXPERTS, UNDETERMINED, {"layer": layer["layer"]}, {}, None, "not compared"))
            continue
        unguarded = sorted([*coverage["thin"], *coverage["unreached"]])
        for kind, said in (("experts", "its weights"), ("router_rows", "its router row")):
            found = outlying_experts(layer, kind, unguarded)
            if found:
                gates.append(_outlying(layer, kind, said, found))
    return gates or [Gate(EXPERTS, PASS, {}, {})]


def _outlying(layer: Mapping[str, Any], kind: str, said: str, found: Sequence[int]) -> Gate:
    changes = layer["changes"][kind]
    worst = max(found, key=lambda number: float("inf") if changes[number] is None else changes[number])
    more = f", and {len(found) - 1} more experts of the layer" if len(found) > 1 else ""
    few = "no" if worst in layer["pair"]["expert_coverage"]["unreached"] else "hardly any"
    reason = f"{said} changed by {moved(changes[worst])}{more}; {few} probe token uses it: {NOTHING_SAYS}"
    return Gate(EXPERTS, UNDETERMINED, {"layer": layer["layer"], "expert": worst}, {}, None, reason)


def moved(change: float | None) -> str:
    """Return a relative change of weights in words."""
    return "what has no number" if change is None else f"{change:.3g} of the norm"


def _row_gates(receipt: Receipt) -> list[Gate]:
    ends = receipt.get("vocabulary") or {}
    classes = (receipt.get("weights") or {}).get("classes") or {}
    stored = ["embedding", *(["head"] if (classes.get("head") or {}).get("tensors") else [])]
    missing = [
        Gate(ROWS, UNDETERMINED, {"class": name}, {}, None, "its rows were not compared")
        for name in stored
        if not ends.get(name)
    ]
    gates = [gate for name, found in ends.items() if found for gate in _end_gates(name, found)]
    return [*missing, *gates] or [Gate(ROWS, PASS, {}, {})]


def _end_gates(name: str, found: Mapping[str, Any]) -> Iterator[Gate]:
    where, outlying = {"class": name}, sum(found["outlying"].values())
    if found["permuted"] > 1:
        reason = f"{found['permuted']} rows hold other rows of the base, whose places changed, too{_ids(found, 'was')}"
        yield Gate(ROWS, FAIL, where, {}, None, reason)
    if found["far_longer"]:
        reason = (
            f"{found['far_longer']} rows are over ten times as long as the longest of the base{_ids(found)}"
        )
        yield Gate(ROWS, FAIL, where, {}, None, reason)
    extra = found.get("extra")
    if extra and extra["side"] == "tuned" and extra["far_longer"]:
        reason = (
            f"{extra['far_longer']} of the {extra['rows']} rows that the tuned checkpoint alone has, from id "
            f"{extra['first']} on, are over ten times as long as the longest of the base"
        )
        yield Gate(ROWS, FAIL, where, {}, None, reason)
    if outlying > max(FEW_ROWS, found["rows"] // FEW_SHARE):
        unseen = found["outlying"]["unseen"]
        reason = f"{outlying} rows were replaced or nearly, {unseen} of them of ids in no probe window{_ids(found)}"
        yield Gate(ROWS, UNDETERMINED, where, {}, None, f"{reason}: {NOTHING_SAYS}" if unseen else reason)


def _ids(found: Mapping[str, Any], key: str = "outlying") -> str:
    """Some ids, with their names where they have any."""
    rows = [row for row in found["named"] if row[key] is not None and row[key] is not False][:4]
    shown = ", ".join(f"{row['id']} ({row['name']})" if row["name"] else str(row["id"]) for row in rows)
    return f" (ids {shown} …)" if shown else ""
