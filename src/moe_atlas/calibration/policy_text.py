"""Write the calibrated policy as a central policy file (schema ``atlas/policy/v1``), each number with its origin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_atlas.calibration.budgets import DAMAGED_ALLOWED, Budget, Calibration, outcomes
from moe_atlas.calibration.healthy import ACCEPTABLE
from moe_atlas.calibration.pairs import Pair
from moe_atlas.channels import BUDGETS
from moe_atlas.text import shown
from moe_atlas.views.registered import Policy


def policy_file(calibration: Calibration, damaged: Sequence[Pair], name: str) -> str:
    """Return the text of the whole file."""
    first = calibration.healthy[0]
    caught = "".join(f"# {line}\n" for line in table(calibration, damaged)) if damaged else ""
    indented = "\n".join(f"  {line}".rstrip() for line in policy_lines(calibration))
    pairs = "".join(
        f"#   {shown(pair.name)} (sha256 {pair.receipt_sha256[:16]})\n" for pair in calibration.healthy
    )
    accepted = "".join(f"# Accepted by name as healthy: {ACCEPTABLE[one]}.\n" for one in calibration.accepted)
    return f"""\
# Written by atlas calibrate. Use it as it is:   atlas register probes.yaml --policy-from {shown(name)}
{header(calibration)}
# The healthy pairs:
{pairs}{accepted}{caught}schema: atlas/policy/v1
name: calibrated
policy:
{indented}
{bound(first.setting["evaluation"], first.guarded)}"""


def bound(evaluation: Any, guarded: Any) -> str:
    """Return the lines of evaluation and protected layers: budgets hold for these alone."""
    lines = [f"evaluation: {flow(evaluation)}\n"]
    if guarded is not None:
        lines.append(f"protected_layers: {flow(guarded)}\n")
    return "".join(lines)


def header(calibration: Calibration) -> str:
    """Return the comment on the origin of the numbers and on their limits."""
    n = len(calibration.healthy)
    measured = any(pair.floors for pair in calibration.healthy)
    floor = (
        ""
        if measured
        else "\n# No receipt measured a noise floor (--noise-floor order), so none is in these numbers."
    )
    return f"""\
# Each budget: the largest upper bound over protected layers (damage: over base domains) in every healthy pair;
# the {calibration.level:.0%} prediction bound for one more such pair, were these {n} values normal; times \
{calibration.factor:g}; at
# least ten times the noise floor; rounded up to two digits. With {n} pairs and no assumption at all, the largest
# of them bounds the next one with probability {n}/{n + 1} = {calibration.reached:.0%}, no more.{floor}"""


def policy_lines(calibration: Calibration) -> list[str]:
    """Return the lines of the `policy` block, without their indentation."""
    first = calibration.healthy[0]
    budgets, policy = calibration.budgets, first.policy
    lines = [f"stage: {policy.stage}"]
    lines += ["task: none"] if policy.task == "none" else []
    lines += [f"confidence: {policy.confidence:g}", f"resamples: {policy.resamples}", "rewrite:"]
    lines += [f"  {_line(key, budgets[key])}" for key in BUDGETS]
    refinement = policy.rewrite.refinement
    if refinement is not None and budgets["tau"].value is not None:
        lines.append(f"  # tau: {_origin(budgets['tau'])}")
        mu = ", ".join(f"{value:g}" for value in refinement.mu)
        lines.append(f"  refinement: {{mu: [{mu}], tau: {budgets['tau'].value:g}}}")
    lines += lifecycle_lines(policy)
    lines += ["damage:", f"  {_line('nll', budgets['nll'])}"]
    # null would leave kl ungated; an absent key is replaced by twice nll
    bounded = budgets["kl"].value is not None
    lines.append(f"  {_line('kl', budgets['kl'])}" if bounded else f"  # kl: {_origin(budgets['kl'])}")
    lines.append(f"  {_line('document_nll', budgets['document_nll'])}")
    share = f"the exact bound when {DAMAGED_ALLOWED} of {first.documents} documents lies above"
    lines.append(f"  document_share: {calibration.document_share:g}  # {share}")
    return [*lines, weights_line(policy), f"set_for: {flow(set_for(first))}"]


def lifecycle_lines(policy: Policy) -> list[str]:
    """Return the lines of what the lifecycle margins need, as it was registered."""
    found = {key: policy.rewrite.facts.get(key) for key in ("handoff", "smooth")}
    return [f"  {key}: {flow(value)}" for key, value in found.items() if value]


def weights_line(policy: Policy) -> str:
    """Return the line of the rules for weights, as it was registered."""
    rules = policy.weights
    found = {
        "must_not_change": (rules and rules.must_not_change) or (),
        "must_change": (rules and rules.must_change) or (),
    }
    return f"weights: {flow(found)}"


def set_for(pair: Pair) -> dict[str, Any]:
    """Return family, k and evaluation set of a pair; k only if all protected layers share it."""
    top_k = pair.setting["top_k"]
    found = {"family": pair.setting["family"], "top_k": top_k[0] if len(top_k) == 1 else None}
    found |= {"experts": pair.setting["evaluation"].get("experts")}
    return {key: value for key, value in found.items() if value is not None}


def table(calibration: Calibration, damaged: Sequence[Pair]) -> list[str]:
    """Return the outcome of each budget on every damaged pair, and the pairs that no budget stops."""
    keys = [key for key, budget in calibration.budgets.items() if budget.value is not None]
    found = {pair.name: outcomes(pair, calibration) for pair in damaged}
    width = max(len(shown(name)) for name in found)
    lines = ["Damaged pairs, by budget:", f"{'':<{width}}  " + "  ".join(keys)]
    for name, row in found.items():
        cells = "  ".join(f"{row[key]:<{len(key)}}" for key in keys)
        lines.append(f"{shown(name):<{width}}  {cells}".rstrip())
    for key in keys:
        caught = sum(row[key] == "fail" for row in found.values())
        held = sum(row[key] in ("fail", "no pass", "unknown") for row in found.values())
        lines.append(f"{key}: fails {caught} of {len(found)}, lets {len(found) - held} through")
    through = [shown(name) for name, row in found.items() if set(row.values()) == {"missed"}]
    lines.append(f"let through by every budget: {', '.join(through) or 'none'}")
    return lines


def _line(key: str, found: Budget) -> str:
    value = "null" if found.value is None else f"{found.value:g}"
    return f"{key}: {value:<{max(1, 24 - len(key))}} # {_origin(found)}"


def _origin(found: Budget) -> str:
    if not found.healthy or found.bound is None:
        return shown(found.rule, 200)
    values = f"healthy {min(found.healthy):.3g} to {max(found.healthy):.3g}, bound {found.bound:.3g}"
    return values if found.rule == "prediction" else f"{values}; {shown(found.rule, 200)}"


def flow(value: Any) -> str:
    """Return a small value in YAML's flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(entry) for entry in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
