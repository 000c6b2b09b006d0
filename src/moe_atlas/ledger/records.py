"""Turn receipts into ledger entries, and entries into the records that the escalation rule reads.

An entry keeps every figure that a history needs, so a run can be read after its receipts were archived. An entry takes
the licensed claims from the receipt's own claims and gated bounds; it never computes them a second time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moe_atlas.ledger.chain import Entry
from moe_atlas.lifecycle.episodes import GateRecord
from moe_atlas.verdict.claims import CONTRADICTED, LICENSED, NARROWING, status_of
from moe_atlas.verdict.gates.gate import FAIL, is_number
from moe_atlas.verdict.predicates import structural_verdict
from moe_atlas.verdict.sameness import model_identity, nothing_tuned, weights_identity
from moe_atlas.views.measured import Interval
from moe_atlas.views.receipt import ReceiptView

Receipt = Mapping[str, Any]

PATHOLOGY = {"dead_share_rise": "dead_share", "entropy_drop": "entropy", "load_cv_rise": "load_cv"}
_GATES = ("baseline", "resume", "audit")


def receipt_body(
    receipt: Receipt, path: Path, sha256: str, step: int | None = None, reason: str | None = None
) -> dict[str, Any]:
    """Return the ledger's entry on a receipt.

    Args:
        receipt: the receipt, verified.
        path: the receipt's file.
        sha256: digest of the file's bytes.
        step: training step of the checkpoint.
        reason: reason for a new baseline, such as ``node failure``.
    """
    view = ReceiptView(receipt)
    side = "base" if view.is_baseline else "tuned"
    figures, objective, base = _figures(view, side), _objective(view, side), _nll(view, side, "base")
    probe = receipt["probe"]
    lock = probe.get("lock") or {}
    body: dict[str, Any] = {
        "receipt": str(path.resolve()),
        "receipt_sha256": sha256,
        "step": step,
        "reason": reason,
        "verdict": view.verdict,
        "qualified": receipt["qualified"],
        "checkpoint": view.checkpoint(side).digest,
        "weights": weights_identity(view.checkpoint(side)),
        "probe": probe.get("name"),
        "lock_sha256": lock.get("sha256"),
        "lock_policy_sha256": lock.get("policy_sha256"),
        "registered_at": lock.get("registered_at"),
        "registration": lock.get("content_sha256"),
        "policy_sha256": policy_sha256(probe),
        "budgets": _budgets(probe),
        "margin": view.probe.policy.margin("nll"),
        "health": _estimates(figures) | {"experts": _experts(view)},
        "nll": objective.estimate,
        "base_nll": base.estimate,
        "bounds": _bounds(figures | {"nll": objective, "base_nll": base}),
    }
    return body | (_comparison(view) if side == "tuned" else {})


def policy_sha256(probe: Receipt) -> str:
    """Return the digest of the receipt's policy, protected layers, evaluation and domains."""
    keys = ("policy", "protected_layers", "evaluation", "domains")
    text = json.dumps({key: probe.get(key) for key in keys}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _budgets(probe: Receipt) -> dict[str, float | None]:
    rewrite = (probe.get("policy") or {}).get("rewrite") or {}
    return {key: _number(rewrite.get(key)) for key in ("overlap_drop", *NARROWING)}


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


class Spread(NamedTuple):
    """A figure with its bounds; None for what a receipt does not hold."""

    estimate: float | None = None
    low: float | None = None
    high: float | None = None


def _figures(view: ReceiptView, side: str) -> dict[str, Spread]:
    """Return a checkpoint's figures for the history over the protected layers; they are never gated."""
    states = [layer.side(side) for layer in view.protected]
    found = view.aggregates.protected.side(side)
    dead = found.dead_experts if found else None
    return {
        "overlap": _mean([state.interval("overlap") if state else None for state in states]),
        "set_margin": _mean([state.interval("set_margin") if state else None for state in states]),
        "dead_experts": _spread(dead.mean if dead else None),
        "load_cv": _spread(found.mean_load_cv if found else None),
        "min_entropy": _spread(found.min_entropy if found else None),
    }


def _experts(view: ReceiptView) -> float | None:
    """Return the mean number of experts of a protected layer."""
    counts = [layer.experts for layer in view.protected]
    return sum(counts) / len(counts) if counts else None


def _spread(interval: Interval | None) -> Spread:
    if interval is None:
        return Spread()
    return Spread(_number(interval.estimate), _number(interval.low), _number(interval.high))


def _mean(intervals: Sequence[Interval | None]) -> Spread:
    """Return the means of estimates and bounds, None if one is missing: a partial mean would jump between gates.

    The mean of the bounds is never narrower than the mean's own interval, which no receipt holds.
    """
    return Spread(*(_complete_mean(values) for values in zip(*map(_spread, intervals), strict=True)))


def _complete_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _nll(view: ReceiptView, side: str, role: str) -> Spread:
    """Return State3 (the NLL) of the domains of one role, which weigh equally."""
    rows = view.domains_of(role)
    return _mean([row.nll_base if side == "base" else row.nll_tuned for row in rows])


def _objective(view: ReceiptView, side: str) -> Spread:
    """Return State3 of the task domains, or of the base domains without a task."""
    return _nll(view, side, "task" if view.domains_of("task") else "base")


def _estimates(figures: Mapping[str, Spread]) -> dict[str, float | None]:
    return {name: figure.estimate for name, figure in figures.items()}


def _bounds(figures: Mapping[str, Spread]) -> dict[str, list[float] | None]:
    """Return low and high of each figure; None for what is not bounded on both sides."""
    return {
        name: None if figure.low is None or figure.high is None else [figure.low, figure.high]
        for name, figure in figures.items()
    }


def _comparison(view: ReceiptView) -> dict[str, Any]:
    """Return an audit's licensed claims and outcomes about its pair."""
    claims = view.claims
    objective = [status_of(claims, name) for name in ("objective_improved", "canary_nll_improved")]
    return {
        "base": model_identity(view.checkpoint("base")),
        "identical": nothing_tuned(view),
        "structure": structural_verdict(view.facts["predicates"]) if view.predicates else None,
        "objective_improved": _licence(next((s for s in objective if s in (LICENSED, CONTRADICTED)), "")),
        "overlap_worse": _licence(status_of(claims, "overlaps_less_compatible")),
        "pathology": _pathology(view),
        "occupancy_narrowing": _licence(status_of(claims, "usage_narrowing")),
        "margin_sharper": _licence(status_of(claims, "boundaries_sharper")),
        "outcomes": {name: predicate.outcome for name, predicate in view.predicates.items()},
        "failed": sorted(
            {
                line.gate
                for predicate in view.predicates.values()
                for line in predicate.evidence
                if line.result == FAIL
            }
        ),
        "reference": _estimates(_figures(view, "base")) | {"experts": _experts(view)},
    }


def _licence(status: str) -> bool | None:
    return {LICENSED: True, CONTRADICTED: False}.get(status)


def _pathology(view: ReceiptView) -> list[str]:
    """Return the occupancy measures whose simultaneous lower bound exceeds its budget in a protected layer."""
    found = []
    for key, name in PATHOLOGY.items():
        budget = view.probe.policy.budget(key) or 0.0
        lows = [value.simultaneous_low for layer in view.protected if (value := layer.channel(key))]
        if any(low is not None and low > budget for low in lows):
            found.append(name)
    return found


def gate_records(entries: Sequence[Entry]) -> list[GateRecord]:
    """Return the gates of a run, in order; registrations and repairs are not gates."""
    gates = [entry for entry in entries if entry.kind in _GATES]
    first = next((_reference(entry) for entry in gates), None)
    return [_gate_record(entry, first) for entry in gates]


def _reference(entry: Entry) -> Mapping[str, Any]:
    """Return the figures of the run's first reference: its first baseline, or the base of its first audit."""
    reference: Mapping[str, Any] = entry.body.get("reference") or entry.body.get("health") or {}
    return reference


def _gate_record(entry: Entry, first: Mapping[str, Any] | None) -> GateRecord:
    body, health = entry.body, entry.body.get("health") or {}
    audit = entry.kind == "audit"
    narrowing, sharper = body.get("occupancy_narrowing"), body.get("margin_sharper")
    return GateRecord(
        kind=entry.kind,
        step=body.get("step"),
        verdict=body.get("verdict") if audit else None,
        overlap=health.get("overlap"),
        set_margin=health.get("set_margin"),
        dead_experts=health.get("dead_experts"),
        load_cv=health.get("load_cv"),
        min_entropy=health.get("min_entropy"),
        nll=body.get("nll"),
        objective_improved=body.get("objective_improved"),
        overlap_worse=body.get("overlap_worse"),
        pathology=tuple(body.get("pathology") or ()),
        occupancy_healthy=None if narrowing is None else not narrowing,
        margin_worse=None if sharper is None else not sharper,
        failed=tuple(body.get("failed") or ()),
        clean=None if audit else is_clean(health, first or {}, body.get("budgets") or {}),
        policy=body.get("policy_sha256"),
        structure=body.get("structure"),
        registration=body.get("registration"),
        base=body.get("base"),
        weights=body.get("weights"),
        identical=body.get("identical") is True,
    )


def is_clean(health: Mapping[str, Any], first: Mapping[str, Any], budgets: Mapping[str, Any]) -> bool | None:
    """Return whether a new baseline equals the run's first reference to within the registered budgets.

    Overlap and at least one occupancy measure need a budget. The result is None if they have none or if a figure is
    missing. An open episode then stays open, because the baseline of a degraded checkpoint must not clear it.
    """
    rises = {
        "overlap_drop": _difference(first, health, "overlap"),
        "entropy_drop": _difference(first, health, "min_entropy"),
        "load_cv_rise": _difference(health, first, "load_cv"),
        "dead_share_rise": _share(_difference(health, first, "dead_experts"), health.get("experts")),
    }
    limits = {key: limit for key in rises if (limit := _number(budgets.get(key))) is not None}
    known = {key: value for key in limits if (value := rises[key]) is not None}
    if "overlap_drop" not in limits or len(limits) < 2 or len(known) < len(limits):
        return None
    return all(value < limits[key] for key, value in known.items())


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> float | None:
    left, right = _number(one.get(key)), _number(other.get(key))
    return None if left is None or right is None else left - right


def _share(count: float | None, experts: Any) -> float | None:
    total = _number(experts)
    return None if count is None or not total else count / total
