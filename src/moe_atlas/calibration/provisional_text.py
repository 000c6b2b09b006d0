"""Write provisional budgets as a central policy file (schema ``atlas/policy/v1``), each number with its origin."""

from __future__ import annotations

from typing import Any

from moe_atlas.calibration.from_base import Base, Draft
from moe_atlas.calibration.pairs import guarded
from moe_atlas.calibration.policy_text import bound, flow, lifecycle_lines, weights_line
from moe_atlas.probes.settings.policy import CHART_STAGE, EXPANSIVE_STAGE
from moe_atlas.text import interval, shown


def provisional_file(base: Base, draft: Draft, name: str) -> str:
    """Return the text of the whole file."""
    indented = "\n".join(f"  {line}".rstrip() for line in _policy_lines(base, draft))
    costs = "".join(f"#   {line}\n" for line in costs_of_copy(base))
    copy, routed = base.yardstick.copy, [row.layer for row in base.yardstick.layers]
    return f"""\
# Written by atlas calibrate --from-base: PROVISIONAL budgets, for as long as there are no three healthy tunes.
# Take the policy out of the probe file, then:   atlas register --force probes.yaml --policy-from {shown(name)}
# Each budget: {draft.factor:g} times the largest upper bound, over the protected layers, of what a {copy.bits}-bit
# copy of the base does (every tensor, groups of {copy.group}), rounded up to two digits. A pass says: moved no further.
# It does not say that the tune behaves like a healthy tune. Set budgets with --healthy once three such tunes exist.
# The margin is your own number. What the copy costs, for comparison (NLL, nats per token):
{costs}schema: atlas/policy/v1
name: provisional
policy:
{indented}
{bound(base.probe.evaluation.facts, guarded(base.probe.protected_layers, routed))}"""


def costs_of_copy(base: Base) -> list[str]:
    """Return a line for each base domain: what the 4-bit copy costs it."""
    rows = [(row.name, row.interval("nll_increase")) for row in base.base_domains]
    return [f"{shown(name)}: {interval(cost and cost.facts)}" for name, cost in rows]


def _policy_lines(base: Base, draft: Draft) -> list[str]:
    """Return the lines of the `policy` block, without their indentation."""
    policy = base.probe.policy
    stage = EXPANSIVE_STAGE if policy.stage == EXPANSIVE_STAGE else CHART_STAGE
    lines = [f"stage: {stage}", *(["task: none"] if policy.task == "none" else [])]
    lines += [f"confidence: {policy.confidence:g}", f"resamples: {policy.resamples}", "rewrite:"]
    lines += [f"  {_line(key, found.value, found.why)}" for key, found in draft.budgets.items()]
    lines += lifecycle_lines(policy)
    lines += ["damage:", f"  {_line('nll', draft.margin, 'your margin')}"]
    why = f"{draft.document_share:.0%} of the documents that rise so far use up the margin"
    lines += [
        f"  {_line('document_nll', draft.document_nll, why)}",
        f"  document_share: {draft.document_share:g}",
    ]
    return [*lines, weights_line(policy), f"set_for: {flow(_set_for(base, draft))}"]


def _set_for(base: Base, draft: Draft) -> dict[str, Any]:
    top_k = sorted({k for _, k in base.shapes})
    lock = base.probe.lock
    origin: dict[str, Any] = {"base": f'"{base.digest}"', "probe": f'"{lock and lock.sha256}"'}
    origin |= {**base.yardstick.copy.facts, "factor": draft.factor}
    found: dict[str, Any] = {"family": base.family, "top_k": top_k[0] if len(top_k) == 1 else None}
    found |= {"experts": base.probe.evaluation.experts, "from_base": origin}
    return {key: value for key, value in found.items() if value is not None}


def _line(key: str, value: float | None, why: str) -> str:
    shown_value = "null" if value is None else f"{value:g}"
    return f"{key}: {shown_value:<{max(1, 24 - len(key))}} # {shown(why, 200)}"
