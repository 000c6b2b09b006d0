"""Provisional budgets from the base alone: a multiple of what a 4-bit copy of the base does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moe_atlas.calibration.bounds import rounded_down, rounded_up
from moe_atlas.calibration.budgets import DAMAGED_ALLOWED
from moe_atlas.channels import BUDGETS, DISTANCES
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.probes.settings.ceilings import toothless
from moe_atlas.statistics.clopper_pearson import clopper_pearson_upper
from moe_atlas.text import shown
from moe_atlas.views.measured import Interval, no_interval
from moe_atlas.views.registered import ProbeView
from moe_atlas.views.yardstick import CopiedDomain, CopiedLayer, Yardstick

FACTOR = 2.5
RULED = tuple(channel for channel in DISTANCES if channel.key != "transition_drift")
UNRULED = {
    "transition": "grows with the square of a change",
    "overlap_drop": "says more of which object moved than of how far",
    "entropy_drop": "says more of which object moved than of how far",
    "load_cv_rise": "says more of which object moved than of how far",
}
"""The budgets that no copy sets, with the reason."""


@dataclass(frozen=True)
class Base:
    """A base whose 4-bit copy was measured.

    Attributes:
        yardstick: what the copy does, as a receipt holds it.
        probe: the registered probe, as a receipt holds it.
        family: the model family.
        digest: digest of the base's tensors.
        layers: number of experts and experts of a token, by routed layer.
    """

    yardstick: Yardstick
    probe: ProbeView
    family: str
    digest: str
    layers: Mapping[int, tuple[int, int]]

    @property
    def protected(self) -> list[CopiedLayer]:
        """The yardstick of the protected layers."""
        return [row for row in self.yardstick.layers if row.layer in self.probe.protected_layers]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Experts and k of the protected layers."""
        return [self.layers[row.layer] for row in self.protected]

    @property
    def base_domains(self) -> list[CopiedDomain]:
        """The yardstick of the domains that must not get worse."""
        return [row for row in self.yardstick.domains if row.role == "base"]


@dataclass(frozen=True)
class Provisional:
    """One provisional budget and its origin.

    Attributes:
        value: the budget; None for a channel that stays ungated.
        why: the copy's bound and its layer, or why there is no budget.
    """

    value: float | None
    why: str


@dataclass(frozen=True)
class Draft:
    """Provisional budgets and the limits of damage.

    Attributes:
        budgets: by key, in the order of a policy.
        margin: the user's own margin, nats per token.
        document_nll: rise above which a document counts as damaged.
        document_share: share of the documents of a domain that may be damaged.
        factor: the budgets as a multiple of the copy's upper bounds.
    """

    budgets: Mapping[str, Provisional]
    margin: float
    document_nll: float
    document_share: float
    factor: float


def require_margin(margin: float) -> None:
    """Refuse a margin that gates nothing.

    Raises:
        UsageError: ``E_MARGIN``.
    """
    limit = toothless("nll")
    if not 0.0 < margin < limit:
        problem = f"{margin:g} is not above 0 and below {limit:.3g} nats per token, where perplexity doubles"
        step = "choose the rise of the mean loss that you would still promote"
        raise UsageError("E_MARGIN", "--margin", problem, step)


def draft(base: Base, margin: float, factor: float = FACTOR) -> Draft:
    """Set every budget that a 4-bit copy of the base can set.

    A budget is `factor` times the largest upper bound over the protected layers, rounded up to two digits. The margin
    is the user's, because no base says how much forgetting is acceptable. A document counts as damaged where it rises
    so far that the tolerated share of such documents alone would use up the margin.

    Args:
        base: the measured base.
        margin: the largest mean rise of a base domain's NLL, nats per token.
        factor: see `Draft`.

    Raises:
        InputRefused: ``E_CALIBRATION`` if the probe set protects no layer or has no base domain.
    """
    if not base.protected or not base.base_domains:
        problem = "protects no layer or has no base domain"
        raise InputRefused("E_CALIBRATION", shown(base.probe.name), problem)
    documents = min(row.documents for row in base.base_domains)
    allowed = clopper_pearson_upper(min(DAMAGED_ALLOWED, documents), documents)
    share = min(rounded_up(allowed), 0.99)
    budgets = {key: _budget(base, key, factor) for key in BUDGETS}
    return Draft(budgets, margin, rounded_down(margin / share), share, factor)


def _budget(base: Base, key: str, factor: float) -> Provisional:
    channel = BUDGETS[key]
    if channel.counts_experts:
        experts = min(count for count, _ in base.shapes)
        return Provisional(rounded_up(1.5 / experts), f"1.5 of {experts} experts")
    found = _defined(base, channel.key)
    bounds = [(interval.high, layer) for interval, layer in found if interval.high is not None]
    if not bounds or len(bounds) < len(found):
        return Provisional(channel.default, "the copy has no upper bound in every protected layer")
    high, layer = max(bounds)
    if channel not in RULED:
        return Provisional(None, f"not gated, because it {UNRULED[key]}; the copy: at most {high:.3g}")
    value, limit = rounded_up(factor * high), toothless(key, base.shapes)
    if not 0.0 < value < limit:
        why = f"{factor:g} × the copy's {high:.3g} says nothing: from {limit:.3g} on a budget cannot fail"
        return Provisional(channel.default, "the copy does not move it" if value <= 0.0 else why)
    return Provisional(value, f"the copy: at most {high:.3g} (layer {layer})")


def _defined(base: Base, key: str) -> list[tuple[Interval, int]]:
    """Return the intervals of the protected layers that define a quantity, each with its layer."""
    found = [(row.interval(key) or no_interval(), row.layer) for row in base.protected]
    return [(interval, layer) for interval, layer in found if not interval.not_applicable]
