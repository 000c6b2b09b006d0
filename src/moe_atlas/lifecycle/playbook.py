"""Words for the escalation rule: the action of each state, the meaning of a gate, the first advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_atlas.verdict import advice
from moe_atlas.verdict.advice import Advice

if TYPE_CHECKING:
    from moe_atlas.lifecycle.episodes import GateRecord

ACTIONS = {
    "waiting": "wait for the first comparison: a baseline licenses no claim of preservation",
    "clear": "continue; preservation is licensed up to this gate",
    "task-open": "continue; atlas and base domains hold, the task is not reached: claim no success at it yet",
    "undetermined": "claim nothing; widen the sample or collect the next gate",
    "first-bad": "revoke every preservation claim; keep the next gate on schedule before escalating",
    "alert": "stay on alert and issue no all-clear: recovery needs overlap and occupancy together, repeatedly",
    "prepare": "prepare the intervention: one more worse gate with this occupancy is drift, not noise",
    "intervene": "intervene at matched scalar quality, or stop claiming progress",
    "recovering": "continue, but wait for another passing gate before declaring recovery",
}

# Why a pass is no evidence that a run recovered, and which step would give evidence.
NOT_COUNTED = {
    "identical": (
        "base and tuned hold the same weights: nothing was compared",
        "audit a checkpoint of this training against its base",
    ),
    "seen": (
        "this checkpoint was audited on the same terms before: it counts once",
        "audit a later checkpoint of this training",
    ),
    "older": (
        "this checkpoint is older than the last bad gate",
        "audit a later one; after a rollback, record it: atlas baseline --run RUN --reason rollback",
    ),
    "policy": (
        "this pass was judged by another policy than the bad gates",
        "restore the probe file they were judged by, register it, and audit a later checkpoint under it",
    ),
    "registration": (
        "this pass rests on other registered windows than the bad gates",
        "restore the probe file and sources they rest on, register them, and audit a later checkpoint under them",
    ),
    "base": (
        "this pass compares with another base than the bad gates",
        "audit a later checkpoint against the base that they were compared with",
    ),
}

_UNREAD = "overlap, occupancy and loss are not all determined: no joint reading"


def joint_reading(gate: GateRecord, improving: bool | None) -> str:
    """Return the joint reading of overlap, occupancy and loss: the rows of Table 11."""
    if gate.kind != "audit":
        return "a reference point: says where the atlas stands, not that it was preserved"
    worse = gate.overlap_worse
    degraded = True if gate.pathology else (False if gate.occupancy_healthy else None)
    if worse is None or degraded is None:
        return _UNREAD
    if worse and degraded:
        return _structural(improving)
    if worse:
        return "the atlas moves without an occupancy collapse: which layers, and is that acceptable at this stage"
    if improving is None:
        return _UNREAD
    if degraded:
        return "usage narrows while overlap holds: hand-off and preservation claims are unlicensed"
    if improving:
        return "objective and usage are jointly consistent with safe continuation on this horizon"
    return "the structure holds, the objective does not improve"


def _structural(improving: bool | None) -> str:
    if improving is None:
        return "overlap and occupancy are both worse; the loss is not known"
    if improving:
        return "scalar improvement without geometric recovery: progress is licensed, structural health is not"
    return "both the scalar and the structural story are bad: intervene or reset"


def first_move(gate: GateRecord, state: str, repairing: bool, not_counted: str | None) -> tuple[str, str]:
    """Return the likely failure object and the first intervention to try (Table 14), broken files first."""
    if state == "waiting":
        return _words(advice.BASELINE)
    if found := advice.broken(set(gate.failed)):
        return _words(found[0])
    if not_counted:
        return NOT_COUNTED[not_counted]
    if state == "task-open":
        return (
            "the task, not the atlas",
            "train on; the receipt says how far the task domains are from their target",
        )
    if gate.standing == "pass":
        return _words(advice.REPAIR) if state != "clear" else ("none", "none")
    if repairing:
        return _words(advice.REPAIR)
    geometric = advice.geometric(
        overlap=bool(gate.overlap_worse), occupancy=bool(gate.pathology), margins=bool(gate.margin_worse)
    )
    if geometric is not None:
        return _words(geometric)
    if gate.standing == "inconclusive":
        return _words(advice.EVIDENCE)
    named = ", ".join(gate.failed) or "the predicates"
    return f"gates {named}", "read their evidence in the receipt, worst protected layer or domain first"


def _words(found: Advice) -> tuple[str, str]:
    return found.failed, found.first
