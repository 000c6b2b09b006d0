"""What to try first, once it is known which object failed (Table 14)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_atlas.verdict.claims import CONTRADICTED, LICENSED, status_of
from moe_atlas.verdict.gates.gate import FAIL, UNDETERMINED
from moe_atlas.verdict.gates.unreplayed_parts import GATE as UNREPLAYED
from moe_atlas.verdict.task import IDENTICAL, NOTHING_TUNED

Receipt = Mapping[str, Any]


def derive_next_steps(receipt: Receipt) -> list[dict[str, str]]:
    """Return ``{pattern, object, first}`` lines, the most pressing first; empty on a clean pass."""
    if receipt["kind"] == "baseline":
        return [
            _step(
                "a baseline, no comparison yet",
                "a missing receipt, not a model failure",
                "do nothing except collect the first comparison against this baseline",
            )
        ]
    return [*_integrity(receipt), *_playbook(receipt), *_damage(receipt), *_task(receipt), *_sample(receipt)]


def _step(pattern: str, failed: str, first: str) -> dict[str, str]:
    return {"pattern": pattern, "object": failed, "first": first}


def _failed(receipt: Receipt, predicate: str) -> set[str]:
    evidence = receipt["predicates"][predicate]["evidence"]
    return {line["gate"] for line in evidence if line["result"] == FAIL}


def _integrity(receipt: Receipt) -> list[dict[str, str]]:
    """Broken bytes come before geometry: no training repairs a bad save."""
    failed = _failed(receipt, "protected_atlas_rewrite")
    out = []
    if "non_finite_weights" in failed:
        out.append(_step("non-finite weights", "the saved file", "save or convert the checkpoint again"))
    if "non_finite_output" in _failed(receipt, "base_domain_damage"):
        first = (
            "look for an overflow from the layer named in the evidence on: a scale that was lost, or a conversion to a "
            "narrower dtype; more documents do not help"
        )
        out.append(_step("the tuned checkpoint computes NaN or infinity", "the saved weights", first))
    if "identity" in failed:
        first = (
            "check the save, shard and load path of the experts named in the evidence before anything else"
        )
        out.append(_step("experts are not where they were", "the expert layout", first))
    if "vocabulary_rows" in failed:
        first = "check what resized, merged or sorted the vocabulary: embedding and head rows are named in the evidence"
        out.append(_step("rows of embedding or head are not what they were", "the vocabulary", first))
    if "weights" in failed:
        first = "check which parameters the optimiser and the merge step really wrote"
        out.append(_step("a registered weight rule is breached", "the training or merge step", first))
    return [*out, *_unreplayed(receipt)]


def _unreplayed(receipt: Receipt) -> list[dict[str, str]]:
    lines = receipt["predicates"]["protected_atlas_rewrite"]["evidence"]
    parts = [
        line.get("part")
        for line in lines
        if line["gate"] == UNREPLAYED and line["result"] in (FAIL, UNDETERMINED)
    ]
    if not any(parts):
        return []
    first = (
        "restore these tensors from the base or from the training checkpoint; where they are not served, register a "
        f"policy with allow: [{', '.join(parts)}]"
    )
    return [_step("a part that no probe token passes differs", "the export or merge step", first)]


def _playbook(receipt: Receipt) -> list[dict[str, str]]:
    """Rows 1, 2 and 4 of Table 14, and the channels that stand for themselves."""
    claims, failed = receipt["claims"], _failed(receipt, "protected_atlas_rewrite")
    worse = status_of(claims, "overlaps_less_compatible") == LICENSED
    narrower = status_of(claims, "usage_narrowing") == LICENSED
    if worse and narrower:
        return [
            _step(
                "overlap worsens and occupancy degrades",
                "co-active overlap failure plus a narrowed visited region",
                "regularise endpoints or adapters, or control the router prior, at matched scalar success; "
                "do not keep training passively",
            )
        ]
    if worse and failed:
        return [
            _step(
                "overlap worsens with healthy occupancy",
                "atlas drift without occupancy collapse",
                "inspect the protected layers first; tighten chart-preserving controls before changing experts",
            )
        ]
    out = []
    if narrower:
        out.append(
            _step(
                "occupancy narrows",
                "the visited region",
                "check load balancing and the data mix of this stage",
            )
        )
    if status_of(claims, "boundaries_sharper") == CONTRADICTED:
        out.append(
            _step(
                "set margins fall while overlap is stable",
                "boundary-local routing",
                "check gain drift, thresholding and boundary-local router behaviour before a broad intervention",
            )
        )
    if failed & {"coordinate", "boundary", "transition", "content", "expert_content", "refinement_margin"}:
        out.append(
            _step(
                "protected layers moved beyond budget",
                "the channels named in the evidence",
                "move the budget of the update to adapters and endpoint layers, then to router-prior control",
            )
        )
    return out


def _damage(receipt: Receipt) -> list[dict[str, str]]:
    failed = _failed(receipt, "base_domain_damage")
    if not failed:
        return []
    if failed == {"non_finite_output"}:
        return []
    if failed == {"kl"}:
        first = (
            "compare the temperature of both heads: predictions moved further than the loss says, so that gains in one "
            "place may pay for damage in another"
        )
        return [_step("a base domain is predicted differently", "the next-token distributions", first)]
    return [
        _step(
            "a base domain is damaged",
            "capability outside the task",
            "replay base-domain data or shorten the run, and audit an earlier checkpoint of it",
        )
    ]


def _task(receipt: Receipt) -> list[dict[str, str]]:
    outcome = receipt["predicates"]["knowledge_expansive"]["outcome"]
    if outcome == NOTHING_TUNED and receipt["predicates"]["knowledge_expansive"]["passed"] is not True:
        first = (
            "give the checkpoint that was tuned; for a conversion, a resharding or a smoke test register a policy "
            f"with allow: [{IDENTICAL}]"
        )
        return [_step("nothing was tuned", "the pair that was given", first)]
    if outcome == "task-not-reached":
        first = "reach the target before judging preservation: an untouched atlas earns no credit by itself"
        return [_step("the task target was missed", "the objective", first)]
    if outcome == "chart-redefining":
        first = (
            "audit chart-preserving attempts on the same base and registration, and give them with --attempt"
        )
        return [_step("the task was reached by rewriting", "the choice of stage", first)]
    if outcome == "misclassified":
        return [
            _step("the rewrite was avoidable", "the policy", "promote the chart-preserving attempt instead")
        ]
    return []


def _sample(receipt: Receipt) -> list[dict[str, str]]:
    """An inconclusive verdict usually wants more documents, not another threshold."""
    if receipt["verdict"] != "inconclusive":
        return []
    open_gates = sorted(
        {
            line["gate"]
            for predicate in receipt["predicates"].values()
            for line in predicate["evidence"]
            if line["result"] == UNDETERMINED and line["gate"] not in ("nothing_tuned", UNREPLAYED)
        }
    )
    if not open_gates:
        return []
    if "kl" in open_gates and "kl" not in receipt["probe"]["policy"]["damage"]:
        first = (
            "compare the temperature of both heads; if the tune is as it should be, let atlas calibrate set damage.kl "
            "from healthy ones, and register it"
        )
        return [_step("predictions moved further than the loss says", "the next-token distributions", first)]
    first = (
        "read the reasons in the evidence; where the interval is too wide, register more documents a domain"
    )
    if set(open_gates) <= {"unmeasured_experts", "vocabulary_rows"}:
        first = (
            "register documents that hold the tokens or reach the experts that are named, or allow it by name"
        )
    return [_step(f"undetermined: {', '.join(open_gates)}", "the evidence, not yet the model", first)]
