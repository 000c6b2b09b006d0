"""Compute budgets as upper prediction bounds over healthy pairs, and their outcomes on damaged pairs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from moe_atlas.calibration.bounds import (
    FEWEST,
    distribution_free_level,
    prediction_bound,
    rounded_up,
)
from moe_atlas.calibration.healthy import ACCEPTABLE, require_healthy
from moe_atlas.calibration.pairs import Pair, require_one_setting
from moe_atlas.channels import BUDGETS
from moe_atlas.errors import UsageError
from moe_atlas.probes.settings.ceilings import FLOOR_FACTOR, HALF, toothless
from moe_atlas.statistics.clopper_pearson import clopper_pearson_upper

LEVEL = 0.99  # one-sided, of the prediction bound
FACTOR = 2.0  # of the prediction bound; a seed does not explain twice the bound of healthy tunes
DAMAGED_ALLOWED = 1  # documents of the smallest base domain that may lie above the per-document limit
DAMAGE = ("nll", "kl", "document_nll")


@dataclass(frozen=True)
class Budget:
    """A calibrated budget and its origin.

    Attributes:
        value: the budget; None if the pairs support no number.
        healthy: the value of each healthy pair, in the order given.
        bound: the prediction bound of these values; None if a pair has no value.
        rule: the rule that decided: ``prediction``, ``noise floor`` or ``one expert``; or why there is no budget.
    """

    value: float | None
    healthy: tuple[float, ...]
    bound: float | None
    rule: str


@dataclass(frozen=True)
class Calibration:
    """Budgets and their evidence.

    Attributes:
        budgets: by key: the channels' and absolute budgets, ``tau``, ``nll``, ``kl``, ``document_nll``.
        document_share: the share of documents that may lie above ``document_nll``.
        healthy: the healthy pairs.
        level: one-sided level of the prediction bound, if the values are normal.
        reached: the level without an assumption on the distribution: n/(n+1) for the largest of n.
        factor: the factor on the bound.
        accepted: names of `moe_atlas.calibration.healthy.ACCEPTABLE` that the caller accepted.
    """

    budgets: Mapping[str, Budget]
    document_share: float
    healthy: tuple[Pair, ...]
    level: float
    reached: float
    factor: float
    accepted: tuple[str, ...] = ()


def calibrate(
    healthy: Sequence[Pair],
    level: float = LEVEL,
    factor: float = FACTOR,
    accepted: Collection[str] = (),
) -> Calibration:
    """Set every budget from healthy pairs of one setting.

    A budget is `factor` times the normal prediction bound for the largest upper bound of the next healthy pair. It is
    at least ten times the noise floor, and rounded up to two digits.

    Raises:
        UsageError: ``E_TOO_FEW`` for fewer than three pairs, ``E_MIXTURE``, ``E_REPEATED``; every refusal of
            `require_healthy`.
    """
    if len(healthy) < FEWEST:
        problem = f"{len(healthy)} healthy receipts; a prediction bound needs {FEWEST}, and ten say much more"
        raise UsageError("E_TOO_FEW", "--healthy", problem, "tune again with other seeds and audit")
    require_one_setting(healthy)
    require_healthy([(pair.name, pair.origin) for pair in healthy], accepted)
    keys = (*BUDGETS, "tau", *DAMAGE)
    budgets = {key: _budget(key, healthy, level, factor) for key in keys}
    documents = min(pair.documents for pair in healthy)
    share = rounded_up(clopper_pearson_upper(min(DAMAGED_ALLOWED, documents), documents))
    reached = distribution_free_level(len(healthy))
    named = tuple(name for name in ACCEPTABLE if name in accepted)
    return Calibration(budgets, min(share, 0.99), tuple(healthy), level, reached, factor, named)


def _budget(key: str, healthy: Sequence[Pair], level: float, factor: float) -> Budget:
    """Return a budget; a guard without one keeps its default, because null would leave it ungated."""
    found = _own_budget(key, healthy, level, factor)
    default = BUDGETS[key].default if key in BUDGETS else None
    if default is not None and found.value is None and all(value < default for value in found.healthy):
        return replace(found, value=default, rule=f"the default; {found.rule}")
    return found


def _own_budget(key: str, healthy: Sequence[Pair], level: float, factor: float) -> Budget:
    values = [pair.bounds[key] for pair in healthy]
    if any(value is None for value in values):
        return Budget(None, (), None, _why_missing(key, healthy))
    found = tuple(float(value) for value in values if value is not None)
    bound = prediction_bound(found, level)
    candidates = {
        "prediction": factor * max(bound, *found),
        "noise floor": FLOOR_FACTOR * max((pair.floors.get(key, 0.0) for pair in healthy), default=0.0),
    }
    if key in BUDGETS and BUDGETS[key].counts_experts:
        candidates["one expert"] = 1.5 / min(pair.experts for pair in healthy)
    rule = max(candidates, key=lambda name: candidates[name])
    value = rounded_up(candidates[rule])
    if value <= 0.0:
        return Budget(None, found, bound, "no healthy pair moved it upwards: choose a number by hand")
    limit = _uninformative_from(key, healthy[0])
    if value >= limit:
        why = f"healthy pairs would need {value:g}, and from {limit:.3g} on it says nothing"
        return Budget(None, found, bound, why)
    return Budget(value, found, bound, rule)


def _uninformative_from(key: str, pair: Pair) -> float:
    """Return the value from which on a budget cannot fail; it follows from the setting that all pairs share."""
    if key == "tau":
        refinement = pair.policy.rewrite.refinement
        return HALF * math.fsum(refinement.mu if refinement else ())
    return toothless(key, [(pair.experts, max(pair.setting["top_k"]))])


def _why_missing(key: str, healthy: Sequence[Pair]) -> str:
    without = next(pair for pair in healthy if pair.bounds[key] is None)
    if key == "tau":
        return "the refinement margin was not registered or not bounded"
    return f"{without.name}: {without.missing.get(key, 'not bounded')}"


CAUGHT, OPEN, MISSED, UNKNOWN = "fail", "no pass", "missed", "unknown"


def outcomes(pair: Pair, calibration: Calibration) -> dict[str, str]:
    """Return the outcome of each budget on a pair: fail, no pass, missed, or unknown.

    `no pass`: the upper bound is not below the budget, and the lower bound is not above it.
    """
    out = {}
    for key, budget in calibration.budgets.items():
        if budget.value is None:
            continue
        high, low = pair.bounds[key], pair.certain[key]
        if low is not None and low > budget.value and key != "document_nll":
            out[key] = CAUGHT
        elif high is None:
            out[key] = UNKNOWN
        else:
            out[key] = MISSED if high < budget.value else OPEN
    return out
