"""Rows for the page's tables: occupancy, experts by name, weights, claims, margins, digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moe_atlas.report.head import unjudged
from moe_atlas.report.words import (
    OUTCOMES,
    PASSED,
    PREDICATES,
    SYMBOLS,
    Receipt,
    estimate,
    gate_name,
    grouped,
    place,
)
from moe_atlas.text import interval, number, shown, size

CLAIM_SYMBOLS = {"licensed": "✓", "contradicted": "✗", "unlicensed": "–"}
HEALTH = {
    "load_entropy": "load entropy, nats",
    "effective_experts": "effective experts",
    "load_cv": "load CV",
    "dead_experts": "dead experts",
    "set_margin": "set margin (State1)",
    "overlap": "overlap (State2)",
}
SHIFTS_SHOWN = 12


def predicates(receipt: Receipt) -> list[dict[str, Any]]:
    """The three predicates with their evidence in groups and line by line."""
    return [
        {
            "name": PREDICATES[name],
            "outcome": predicate["outcome"],
            "meaning": OUTCOMES.get(predicate["outcome"]),
            "result": PASSED[predicate["passed"]],
            "symbol": SYMBOLS[PASSED[predicate["passed"]]],
            "reason": predicate.get("reason"),
            "groups": [
                {"result": group.result, "symbol": SYMBOLS[group.result], "sentence": group.sentence}
                for group in grouped(predicate["evidence"])
                if group.result in ("fail", "undetermined", "not-applicable")
            ],
            "passing": sorted(
                {gate_name(str(g.gate)) for g in grouped(predicate["evidence"]) if g.result == "pass"}
            ),
            "unjudged": unjudged(receipt) if name == "protected_atlas_rewrite" else "",
            "lines": [_line(line) for line in predicate["evidence"]],
        }
        for name, predicate in receipt["predicates"].items()
    ]


def _line(line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "gate": gate_name(str(line["gate"])),
        "place": place(line),
        "interval": interval(line),
        "bound": number(line.get("simultaneous_low")),
        "budget": number(line["budget"]),
        "result": line["result"],
        "symbol": SYMBOLS[line["result"]],
        "reason": line.get("reason") or "",
    }


def domains(receipt: Receipt) -> list[dict[str, Any]]:
    """NLL and output shift of every domain."""
    return [
        {
            "name": row["name"],
            "role": row["role"],
            "documents": row["documents"],
            "base": number(estimate(row["nll_base"]), 4),
            "tuned": number(estimate(row.get("nll_tuned")), 4),
            "increase": interval(row.get("nll_increase")),
            "kl": interval(row.get("kl")),
            "agreement": interval(row.get("top1_agreement")),
            "damaged": _damaged(row.get("damaged_documents")),
        }
        for row in receipt["domains"]
    ]


def _damaged(found: Mapping[str, Any] | None) -> str:
    if not found or found.get("count") is None:
        return "–"
    return f"{found['count']} of {found['documents']} (at most {number(100 * found['share_high'])} %)"


def health(receipt: Receipt) -> list[dict[str, Any]]:
    """Occupancy, margin and overlap of both checkpoints, layer by layer."""
    return [
        {
            "layer": layer["layer"],
            "protected": layer["protected"],
            "cells": [
                {side: interval((layer.get(side) or {}).get(key)) for side in ("base", "tuned")}
                for key in HEALTH
            ],
        }
        for layer in receipt["layers"]
    ]


def shifts(receipt: Receipt) -> list[dict[str, Any]]:
    """The experts whose share of tokens changed most."""
    found = []
    for layer in receipt["layers"]:
        base, tuned = ((layer.get(side) or {}).get("expert_share") for side in ("base", "tuned"))
        for expert, (before, after) in enumerate(zip(base or (), tuned or (), strict=False)):
            found.append((abs(after - before), layer, expert, before, after))
    found.sort(key=lambda item: -item[0])
    return [
        {
            "layer": layer["layer"],
            "protected": layer["protected"],
            "expert": expert,
            "before": f"{100 * before:.2f} %",
            "after": f"{100 * after:.2f} %",
            "change": f"{100 * (after - before):+.2f}",
        }
        for _, layer, expert, before, after in found[:SHIFTS_SHOWN]
    ]


def named_experts(receipt: Receipt) -> Iterator[dict[str, str]]:
    """Experts with something wrong, by name: newly dead, cloned, init-like, relabelled, and every breach."""
    for layer in receipt["layers"]:
        base, tuned = ((layer.get(side) or {}).get("expert_share") or [] for side in ("base", "tuned"))
        dead = [e for e, share in enumerate(tuned) if share == 0 and (e >= len(base) or base[e] > 0)]
        if dead:
            chance = number((layer.get("tuned") or {}).get("dead_by_chance"))
            said = f"saw tokens before, none after: {_listed(dead)} (by chance {chance} would be unseen)"
            yield {"layer": str(layer["layer"]), "what": "dead experts", "detail": said}
    for layer in receipt["identity"].get("layers", []):
        yield from _identity(layer)
    for breach in receipt["identity"].get("breaches", []):
        yield {
            "layer": str(breach.get("layer")),
            "what": f"breach: {breach['kind']}",
            "detail": str(breach["detail"]),
        }


def _identity(layer: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    where = str(layer["layer"])
    clones = layer.get("clones") or {}
    for group in clones.get("tuned") or []:
        if group not in (clones.get("base") or []):
            yield {"layer": where, "what": "clones", "detail": f"hold the same values: {_listed(group)}"}
    if layer.get("match"):
        yield {
            "layer": where,
            "what": "relabelled",
            "detail": "a consistent permutation of experts; not a rewrite",
        }
    before, after = ((layer.get("init_like") or {}).get(side) or [] for side in ("base", "tuned"))
    fresh = sorted(set(after) - set(before))
    if fresh:
        yield {
            "layer": where,
            "what": "init-like",
            "detail": f"look untrained, unlike before: {_listed(fresh)}",
        }


def _listed(experts: Sequence[int]) -> str:
    some = ", ".join(str(expert) for expert in experts[:24])
    return some if len(experts) <= 24 else f"{some} and {len(experts) - 24} more"


def weights(receipt: Receipt) -> list[dict[str, Any]]:
    """The weights ledger by class, with the registered rule; classes without tensors are left out."""
    rules = receipt["probe"]["policy"].get("weights") or {}
    sides = ("base", "tuned") if receipt["kind"] == "audit" else ("base",)
    return [
        {
            "name": name.replace("_", " "),
            "tensors": entry["tensors"],
            "changed": _plain(entry.get("changed")),
            "relative": number(entry.get("relative_change")),
            "zeros": " → ".join(_side(entry, "zeros", side) for side in sides),
            "nonfinite": _side(entry, "nonfinite", sides[-1]),
            "rule": ", ".join(rule.replace("_", " ") for rule, names in rules.items() if name in names)
            or "–",
        }
        for name, entry in (receipt["weights"].get("classes") or {}).items()
        if entry.get("tensors")
    ]


def vocabulary(receipt: Receipt) -> list[dict[str, Any]]:
    """Embedding and head row by row: ids that the probe reads beside those that it does not, and those of one side."""
    ends = {end: found for end, found in (receipt.get("vocabulary") or {}).items() if found}
    lone = [_lone_rows(end, found["extra"]) for end, found in ends.items() if found.get("extra")]
    return lone + [
        {
            "end": end,
            "ids": str(found["seen"] if side == "seen" else found["rows"] - found["seen"]),
            "where": "in a probe window" if side == "seen" else "in no probe window",
            "changed": str(found["changed"][side]),
            "median": number(found["median_change"][side]),
            "largest": number(found["largest_change"][side]),
            "outlying": str(found["outlying"][side]),
        }
        for end, found in ends.items()
        for side in ("seen", "unseen")
    ]


def _lone_rows(end: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    where = f"in the {extra['side']} checkpoint alone, from id {extra['first']} on"
    row = {"end": end, "ids": str(extra["rows"]), "where": where}
    return row | dict.fromkeys(("changed", "median", "largest", "outlying"), "–")


def _side(entry: Mapping[str, Any], key: str, side: str) -> str:
    return _plain((entry.get(key) or {}).get(side))


def _plain(value: Any) -> str:
    return "–" if value is None else str(value)


def claims(receipt: Receipt) -> list[dict[str, Any]]:
    """Claims, licensed ones first."""
    order = list(CLAIM_SYMBOLS)
    found = sorted(receipt["claims"], key=lambda claim: order.index(claim["status"]))
    return [
        {
            "statement": claim["statement"],
            "status": claim["status"],
            "symbol": CLAIM_SYMBOLS[claim["status"]],
            "number": interval(claim) if claim.get("estimate") is not None else "",
            "layer": claim.get("layer"),
            "silent": claim["does_not_say"],
        }
        for claim in found
    ]


def lifecycle(receipt: Receipt) -> list[dict[str, str]]:
    """The lifecycle margins, exact and as published."""
    return [
        {
            "name": key.replace("_", " "),
            "value": interval(value),
            "layer": _plain(value.get("layer")),
            "note": str(value.get("reason") or ""),
        }
        for key, value in receipt["margins"].items()
    ]


def checkpoints(receipt: Receipt) -> list[dict[str, str]]:
    """What was read, with digests."""
    return [
        {
            "side": side,
            "path": str(found["path"]),
            "family": str(found["family"]),
            "tensors": str(found["tensors"]),
            "read": size(found["bytes_read"]),
            "dtype": ", ".join(found["dtype"]) if isinstance(found["dtype"], list) else str(found["dtype"]),
            "digest": str(found["digest"]),
        }
        for side, found in receipt["checkpoints"].items()
        if found
    ]


def settings(receipt: Receipt) -> list[tuple[str, str]]:
    """The choices that can move a number, in one line each."""
    method, probe, policy = receipt["method"], receipt["probe"], receipt["probe"]["policy"]
    flat = {key: value for key, value in method.items() if isinstance(value, str | int | float)}
    rows = [(key.replace("_", " "), shown(str(value), 200)) for key, value in flat.items()]
    rows += [
        ("evaluation set", shown(str(probe.get("evaluation")), 200)),
        ("windows", str(probe.get("windows"))),
    ]
    rows += [("stage", str(policy["stage"])), ("confidence", str(policy["confidence"]))]
    rows += [("resamples", str(policy["resamples"])), ("registered", str(probe["lock"].get("registered_at")))]
    rows += [(key.replace("_", " "), shown(str(value))) for key, value in receipt["environment"].items()]
    return [*rows, *((f"timing {key}", str(value)) for key, value in receipt["timing"].items())]


def digests(receipt: Receipt) -> list[tuple[str, str]]:
    """Every digest by which the receipt can be held to its evidence."""
    evidence, lock = receipt["evidence"], receipt["probe"]["lock"]
    rows = [("receipt", evidence.get("receipt_sha256")), ("window data", evidence.get("sha256"))]
    rows += [("probe lock", lock.get("sha256")), ("policy", lock.get("policy_sha256"))]
    rows += [(f"{side} weights", found["digest"]) for side, found in receipt["checkpoints"].items() if found]
    return [(name, str(value)) for name, value in rows if value]
