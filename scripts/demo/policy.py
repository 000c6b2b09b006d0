"""The demo's policy: every budget by a rule that has not seen the two pairs it judges.

Rewrite budgets come from reference tunes: the recipe one would promote, other seeds. A reference counts with
what the gate will look at, its largest upper bound over the protected layers. The budget is the 99 % prediction
bound for one more such tune, mean + t * deviation * sqrt(1 + 1/n), times two: twice as far as a healthy tune
is expected to go at most is not explained by its seed.

Limits of the NLL come from the base alone: shares of how much the NLL of its held-out documents differs from one
document to the next. The limit of the divergence of predictions is a budget like the others. A reference that is
damaged by these limits, or that missed the task, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from moe_atlas.api import Receipt
from moe_atlas.channels import CHANNEL, DRIFTS, REGISTERED
from moe_atlas.text import interval

FACTOR = 2.0
CONFIDENCE = 0.99  # of the prediction bound, one-sided
MEAN_SHARE = 0.1  # of the documents' standard deviation: what a domain may lose on average
DOCUMENT_SHARE = 1.0  # of the same: from here on a single document counts as damaged
BUDGETED = {channel.budget: channel.key for channel in REGISTERED}  # guards keep their defaults
GUARD = CHANNEL["expert_content"].default
DAMAGED_SHARE = 0.05  # of the documents may be damaged; with 120 documents the exact bound allows one


@dataclass(frozen=True)
class Budget:
    """A budget and the values of the references behind it."""

    value: float
    references: tuple[float, ...]
    bound: float


@dataclass(frozen=True)
class Limits:
    """Damage limits in nats per token, and the spread of the base's documents they are shares of."""

    mean: float
    document: float
    spread: float


def prediction_bound(values: Sequence[float]) -> float:
    """One-sided upper prediction bound for one more value of a normal sample of unknown mean and deviation."""
    n = len(values)
    t = float(student.ppf(CONFIDENCE, n - 1))
    return float(np.mean(values)) + t * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / n)


def budget(values: Sequence[float], least: float = 0.0) -> Budget:
    """Twice the prediction bound and no less than `least`, rounded up to two digits."""
    bound = prediction_bound(values)
    return Budget(rounded_up(max(FACTOR * bound, least)), tuple(values), bound)


def rounded_up(value: float) -> float:
    """The next number of two significant digits that is not smaller."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - 1e-9) * unit, 12)


def furthest(receipt: Receipt, channel: str) -> float:
    """The largest upper bound of a pair quantity over the protected layers.

    Raises:
        ValueError: a layer without a bound: then the reference says nothing about this budget.
    """
    bounds: list[float] = [
        layer["pair"][channel]["high"] for layer in receipt.body["layers"] if layer["protected"]
    ]
    if any(bound is None for bound in bounds):
        raise ValueError(f"{receipt.path}: {channel} has no upper bound in every protected layer")
    return max(bounds)


def rewrite_budgets(references: Sequence[Receipt], experts: int) -> dict[str, Budget]:
    """The budgets of the rewrite block by key, `tau` of the refinement margin and `kl` of the damage block."""
    # A share of dead experts moves in steps: less than one and a half experts means one may fall silent.
    least = {"dead_share_rise": 1.5 / experts}
    budgets = {
        key: budget([furthest(receipt, channel) for receipt in references], least.get(key, 0.0))
        for key, channel in BUDGETED.items()
    }
    loads, divergences = zip(*((load(receipt), divergence(receipt)) for receipt in references), strict=True)
    return budgets | {"tau": budget(loads), "kl": budget(divergences)}


def load(receipt: Receipt) -> float:
    """The largest load on the refinement margin (Eq. 32): what tau has to cover, by its upper bound."""
    tau = receipt.body["probe"]["policy"]["rewrite"]["refinement"]["tau"]
    return float(tau - receipt.body["margins"]["refinement_margin"]["low"])


def divergence(receipt: Receipt) -> float:
    """The largest upper bound of the predictions' divergence over the base domains."""
    return max(float(row["kl"]["high"]) for row in receipt.body["domains"] if row["role"] == "base")


def damage_limits(receipt: Receipt) -> Limits:
    """Limits from the base's own spread over documents, the smallest of the base-role domains."""
    windows = receipt.windows()
    nll, number = windows["output.nll_base"], windows["windows.domain"]
    roles = [domain["role"] for domain in receipt.body["domains"]]
    spread = min(float(np.std(nll[number == i], ddof=1)) for i, role in enumerate(roles) if role == "base")
    return Limits(rounded_up(MEAN_SHARE * spread), rounded_up(DOCUMENT_SHARE * spread), spread)


def unhealthy(receipt: Receipt, limits: Limits) -> list[str]:
    """Why a reference must not set budgets; empty for a healthy one."""
    reasons = []
    for domain in receipt.body["domains"]:
        high = domain["nll_increase"]["high"]
        if domain["role"] == "base" and not (high is not None and high < limits.mean):
            reasons.append(f"{domain['name']} may have lost {high} nats, the limit is {limits.mean:g}")
    gates = receipt.body["predicates"]["knowledge_expansive"]["evidence"]
    missed = [gate for gate in gates if gate["result"] != "pass"]
    reasons += [f"task success {interval(gate)} does not clear {gate['budget']:g}" for gate in missed]
    return reasons


def policy_block(budgets: Mapping[str, Budget], limits: Limits, seeds: Sequence[int]) -> str:
    """The `policy` of probes.yaml, each budget with where it comes from."""
    rewrite = "\n".join(_line(key, budgets[key]) for key in BUDGETED)
    return f"""\
  stage: chart-preserving
  confidence: 0.95
  resamples: 2000

  # Rewrite budgets come from {len(seeds)} healthy reference tunes and never from the pairs that are judged. The
  # references are the light recipe with other seeds ({min(seeds)}-{max(seeds)}): other items, other text, other order.
  # For each budget: the largest upper bound over the protected layers in every reference; the {CONFIDENCE:.0%}
  # prediction bound for one more such tune; times {FACTOR:g}; rounded up to two digits.
  # The worst single expert, expert_content, keeps its default of {GUARD:g}: twice the bound of a maximum over
  # experts would lie where unrelated experts lie.
  rewrite:
{rewrite}
    # mu: boundary and content drift count in full, what the least used expert lost counts by half.
    # tau: {_origin(budgets["tau"])}
    refinement: {{mu: [1, 1, 0.5], tau: {budgets["tau"].value:g}}}
    handoff: {{lambda: [1, 0.5]}}  # reported, never gated

  # Limits of the NLL, nats per byte, come from the base alone: its NLL differs between held-out documents with
  # a standard deviation of {limits.spread:.3f}. A domain may lose {MEAN_SHARE:g} of that on average; a document
  # that lost {DOCUMENT_SHARE:g} of it is damaged, and fewer than {DAMAGED_SHARE:.0%} may be (exact bound: one of 120).
  # kl, the divergence of its predictions, is a budget: {_origin(budgets["kl"])}
  damage:
    nll: {limits.mean:g}
    kl: {budgets["kl"].value:g}
    document_nll: {limits.document:g}
    document_share: {DAMAGED_SHARE:g}

  # Neither tune is meant to touch the load-balancing bias, and a tune that never landed is no tune.
  weights: {{must_not_change: [selection_bias], must_change: [attention]}}
  set_for: {{family: deepseek_v3, top_k: 4, experts: active}}
"""


def _line(key: str, found: Budget) -> str:
    return f"    {key}: {found.value:<{22 - len(key)}g} # {_origin(found)}"


def _origin(found: Budget) -> str:
    low, high = min(found.references), max(found.references)
    return f"references {low:.3g} to {high:.3g}, bound {found.bound:.3g}"


_UNGATED = "\n".join(f"    {channel.budget}: null" for channel in DRIFTS)
CALIBRATION = f"""\
  # Measures the reference tunes: nothing is gated here, and no verdict is asked for.
  stage: chart-preserving
  confidence: 0.95
  resamples: 2000
  rewrite:
{_UNGATED}
    refinement: {{mu: [1, 1, 0.5], tau: 1}}
    handoff: {{lambda: [1, 0.5]}}
  damage: {{nll: null, document_nll: null, document_share: null}}
"""
