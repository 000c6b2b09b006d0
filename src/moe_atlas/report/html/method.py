"""Rows of what an audit rests on: checkpoints, choices, noise floor, lifecycle margins, digests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moe_atlas.channels import DRIFTS
from moe_atlas.report.words import NOT_RECORDED, spelled
from moe_atlas.text import number, shown, size
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.registered import CheckpointFacts

Rows = list[tuple[str, str]]


def lifecycle(receipt: ReceiptView) -> list[dict[str, str]]:
    """The lifecycle margins, exact and as published."""
    margins = receipt.margins
    found = {} if margins is None else {key: margins.interval(key) for key in margins.facts}
    return [
        {
            "name": key.replace("_", " "),
            "value": spelled(value),
            "layer": "–" if value is None or value.layer is None else str(value.layer),
            "note": (value.reason if value else None) or "",
        }
        for key, value in found.items()
    ]


def checkpoints(receipt: ReceiptView) -> list[dict[str, str]]:
    """What was audited, with digests."""
    return [_checkpoint(side, found) for side, found in receipt.checkpoints.items()]


def _checkpoint(side: str, found: CheckpointFacts) -> dict[str, str]:
    return {
        "side": side,
        "path": _recorded(found.stored_at),
        "family": _recorded(found.family),
        "tensors": _recorded(found.tensors),
        "read": NOT_RECORDED if found.bytes_read is None else f"{size(found.bytes_read)} read",
        "dtype": NOT_RECORDED if found.dtype is None else ", ".join(found.dtype),
        "digest": _recorded(found.digest),
    }


def _recorded(value: Any) -> str:
    return NOT_RECORDED if value is None else str(value)


def settings(receipt: ReceiptView) -> Rows:
    """The choices that can move a number, in one line each."""
    probe, policy = receipt.probe, receipt.probe.policy
    windows, evaluation = probe.windows.facts, probe.evaluation.facts
    return [
        *_plain(receipt.method.facts),
        ("evaluation set", shown(_listed(evaluation), 200)),
        ("windows", _listed(windows)),
        ("stage", policy.stage),
        ("confidence", str(policy.confidence)),
        ("resamples", str(policy.resamples)),
        ("registered", _recorded(probe.lock.registered_at if probe.lock else None)),
        *_plain(receipt.environment),
        *((f"timing {name}", value) for name, value in _plain(receipt.timing.facts)),
    ]


def _plain(facts: Any) -> Iterator[tuple[str, str]]:
    """Facts that are one word or one number."""
    for key, value in facts.items():
        if isinstance(value, str | int | float):
            yield key.replace("_", " "), shown(str(value), 200)


def _listed(facts: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in _plain(facts)) or NOT_RECORDED


def digests(receipt: ReceiptView) -> Rows:
    """Every digest by which the receipt can be held to its evidence."""
    evidence, lock = receipt.evidence, receipt.probe.lock
    rows = [("receipt", evidence.receipt_sha256), ("window data", evidence.sha256)]
    found = [("probe lock", lock and lock.sha256), ("policy", lock and lock.policy_sha256)]
    found += [(f"{side} weights", one.digest) for side, one in receipt.checkpoints.items()]
    return rows + [(name, value) for name, value in found if value]


def floor(receipt: ReceiptView) -> dict[str, Any] | None:
    """The noise floor in a line: the largest of every channel, and of the change of NLL."""
    found = receipt.noise_floor
    if found is None:
        return None
    columns = (*(channel.key for channel in DRIFTS), "delta")
    largest = {
        key.replace("_", " "): number(max((row.number_at(key) or 0.0 for row in found.layers), default=0.0))
        for key in columns
    }
    return {"execution": found.execution, "largest": largest, "nll": number(found.largest_nll_change)}


def floor_deltas(receipt: ReceiptView) -> dict[int, float]:
    """The noise floor of the dispatch scores by layer."""
    found = receipt.noise_floor
    return {} if found is None else {row.layer: float(row.delta) for row in found.layers}


def immersion(receipt: ReceiptView) -> tuple[int, int]:
    """Routed layers of the base to which the immersion theorem does not apply, of how many."""
    bases = [layer.assumptions.base for layer in receipt.layers]
    return sum(base is not None and base.rank_possible is False for base in bases), len(bases)
