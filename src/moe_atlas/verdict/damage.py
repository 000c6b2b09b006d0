"""Predicate 2: were the base domains damaged?

Per base-role domain: mean paired increase of the next-token NLL below its margin, and the tail guard on single
documents. Non-finite output anywhere and a canary window over its own limit are damage whatever the sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_atlas.verdict.gates import (
    FAIL,
    NOT_GATED,
    PASS,
    UNDETERMINED,
    Gate,
    below_budget,
    is_number,
    too_few,
)

Receipt = Mapping[str, Any]

UNDAMAGED = "undamaged"
DAMAGED = "damaged"


def damage_gates(receipt: Receipt) -> list[Gate]:
    """Return every gate of the predicate, over all domains."""
    limits = receipt["probe"]["policy"]["damage"]
    gates = []
    for row in receipt["domains"]:
        gates.append(_non_finite_gate(row))
        if row["role"] == "base":
            gates += [_mean_gate(row, limits), _tail_gate(row, limits)]
        elif row["role"] == "canary":
            gates.append(_canary_gate(row))
    if not any(row["role"] == "base" for row in receipt["domains"]):
        gates.append(Gate("nll_increase", UNDETERMINED, {}, {}, None, "no base-role domain"))
    return gates


def damage_outcome(gates: list[Gate]) -> str:
    """Return ``undamaged``, ``damaged`` or ``undetermined``; an open limit never passes."""
    if any(gate.result == FAIL for gate in gates):
        return DAMAGED
    return UNDAMAGED if gates and all(gate.result == PASS for gate in gates) else UNDETERMINED


def _non_finite_gate(row: Mapping[str, Any]) -> Gate:
    where, count = {"domain": row["name"]}, row.get("non_finite_windows")
    if not is_number(count):
        return Gate("non_finite_output", UNDETERMINED, where, {}, None, "not counted")
    if count:
        return Gate("non_finite_output", FAIL, where, {}, None, f"{count} windows are not finite")
    return Gate("non_finite_output", PASS, where, {})


def _mean_gate(row: Mapping[str, Any], limits: Mapping[str, Any]) -> Gate:
    interval = row.get("nll_increase") or {"reason": "missing"}
    floor = too_few(row["documents"])
    gate = below_budget("nll_increase", {"domain": row["name"]}, interval, limits.get("nll"), floor, "low")
    return gate if gate.result != NOT_GATED else _open("nll_increase", row)


def _tail_gate(row: Mapping[str, Any], limits: Mapping[str, Any]) -> Gate:
    """The share of damaged documents, its exact 97.5 % upper bound against the registered share."""
    where, limit = {"domain": row["name"]}, limits.get("document_share")
    found = row.get("damaged_documents") or {}
    if limit is None or not is_number(limit) or not is_number(limits.get("document_nll")):
        return _open("tail_guard", row)
    interval = {"estimate": found.get("share"), "high": found.get("share_high")}

    def verdict(result: str, reason: str | None = None) -> Gate:
        return Gate("tail_guard", result, where, interval, limit, reason)

    if (row.get("nll_increase") or {}).get("exact") is True:
        return verdict(PASS, "byte-identical inputs")
    floor = too_few(found.get("documents"))
    if floor is not None:
        return verdict(UNDETERMINED, floor)
    if is_number(found.get("share_high")) and found["share_high"] < limit:
        return verdict(PASS)
    documents = f"{found.get('count')} of {found.get('documents')} documents"
    return verdict(
        UNDETERMINED, f"{documents} above the per-document limit: the share is not bounded tightly"
    )


def _canary_gate(row: Mapping[str, Any]) -> Gate:
    """Every canary window within its own limit."""
    where, found = {"domain": row["name"]}, row.get("worst_window") or {}
    limit, worst = found.get("limit"), found.get("nll_increase")
    interval = {"estimate": worst}
    if not is_number(limit):
        return _open("canary", row)
    if is_number(found.get("over")) and found["over"] > 0:
        return Gate("canary", FAIL, where, interval, limit, f"{found['over']} windows over the limit")
    if found.get("undefined") or not is_number(worst):
        return Gate("canary", UNDETERMINED, where, interval, limit, "a window is undefined")
    return Gate("canary", PASS, where, interval, limit)


def _open(gate: str, row: Mapping[str, Any]) -> Gate:
    return Gate(gate, UNDETERMINED, {"domain": row["name"]}, {}, None, "no limit registered: never passes")
