"""What was measured: intervals, layers and domains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from moe_atlas.views.view import (
    View,
    flag,
    integer,
    integers,
    number,
    numbers,
    numbers_or_none,
    part,
    parts,
    text,
)


class Interval(View):
    """An estimate with its bounds; what could not be measured has none and says why."""

    estimate = number().or_none()
    low = number().or_none()
    high = number().or_none()
    simultaneous_low = number().or_none()
    pass_high = number().or_none()
    effective_documents = number().or_none()
    documents = integer().or_none()
    exact = flag().or_none()
    not_applicable = flag().or_none()
    reason = text().or_none()
    layer = integer().or_none()
    times_copy = number().or_none()

    @property
    def has_pass_bound(self) -> bool:
        """Whether a pass rests on a bound of its own, be it null."""
        return "pass_high" in self.facts


class WorstExpert(Interval):
    """The interval of the expert that moved most."""

    expert = integer().or_none()


def no_interval(reason: str = "missing") -> Interval:
    """Return an interval without numbers."""
    return Interval({"reason": reason})


class Intervals(View):
    """Intervals by name: of a pair by channel, of one checkpoint by quantity."""

    def interval(self, key: str) -> Interval | None:
        """Return one interval; None where it is null or missing."""
        found: Any = self.facts.get(key)
        return None if found is None else Interval(found, self.at(key))


class ExpertCoverage(View):
    """How many experts of a layer are guarded, and which too few tokens use."""

    guarded = integer()
    thin = integers()
    unreached = integers()


class PairView(Intervals):
    """What changed at one layer, by channel."""

    expert_content = part(WorstExpert).or_none()
    expert_coverage = part(ExpertCoverage).or_none()


class HealthView(Intervals):
    """The state of one checkpoint at one layer."""

    expert_share = numbers().or_none()
    dead_by_chance = number().or_none()

    def pooled(self, key: str) -> float | None:
        """Return a figure pooled over all tokens, such as ``set_margin_p10``; None where it has no value."""
        return None if isinstance(self.facts.get(key), Mapping) else self.number_at(key)


class Assumptions(View):
    """Which assumptions of the theorems hold at one layer of one checkpoint."""

    rank_possible = flag().or_none()


class BothAssumptions(View):
    """The same for both checkpoints."""

    base = part(Assumptions).or_none()


class Changes(View):
    """How far the tensors of each expert moved, in shares of their norm; null where no number says it."""

    experts = numbers_or_none()
    router_rows = numbers_or_none()


class LayerView(View):
    """One routed layer."""

    layer = integer()
    protected = flag()
    experts = integer()
    top_k = integer()
    base = part(HealthView).or_none()
    tuned = part(HealthView).or_none()
    pair = part(PairView).or_none()
    changes = part(Changes).or_none()
    assumptions = part(BothAssumptions)
    control = part(Intervals).or_none()

    def changes_of(self, kind: Literal["experts", "router_rows"]) -> tuple[float | None, ...]:
        """Return how far each expert changed: its own tensors, or its row of the router."""
        if self.changes is None:
            return ()
        return self.changes.experts if kind == "experts" else self.changes.router_rows

    @property
    def shares(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The share of tokens of every expert in the base and in the tuned checkpoint; empty where not measured."""
        base, tuned = (side.expert_share if side else None for side in (self.base, self.tuned))
        return base or (), tuned or ()

    def side(self, name: str) -> HealthView | None:
        """Return the state of ``base`` or ``tuned``."""
        return self.base if name == "base" else self.tuned

    def channel(self, key: str) -> Interval | None:
        """Return what changed in one channel; None where the layer has no such interval."""
        if self.pair is None:
            return None
        return self.pair.expert_content if key == "expert_content" else self.pair.interval(key)


class DamagedDocuments(View):
    """How many documents lost more than the limit of a single one."""

    count = integer().or_none()
    documents = integer().or_none()
    share = number().or_none()
    share_high = number().or_none()


class WorstWindow(View):
    """The canary window that lost most."""

    nll_increase = number().or_none()
    limit = number().or_none()
    undefined = integer().or_none()
    over = integer().or_none()


class Success(View):
    """A task's rule and what both checkpoints reach."""

    metric = text().or_none()
    relative_to_base = flag().or_none()
    at_most = number().or_none()
    at_least = number().or_none()
    value = part(Interval).or_none()
    base = part(Interval).or_none()


class DomainRow(Intervals):
    """One domain before and after."""

    name = text()
    role = text()
    documents = integer()
    windows = integer()
    nll_base = part(Interval).or_none()
    nll_tuned = part(Interval).or_none()
    nll_increase = part(Interval).or_none()
    kl = part(Interval).or_none()
    top1_agreement = part(Interval).or_none()
    token_accuracy_gain = part(Interval).or_none()
    exact_match_gain = part(Interval).or_none()
    non_finite_windows = integer().or_none()
    non_finite_base = integer().or_none()
    non_finite_layer = integer().or_none()
    damaged_documents = part(DamagedDocuments).or_none()
    worst_window = part(WorstWindow).or_none()
    success = part(Success).or_none()


class Margins(Intervals):
    """The lifecycle margins over the protected layers, exact and as published."""

    refinement_margin = part(Interval).or_none()
    handoff_margin = part(Interval).or_none()


class FloorRow(View):
    """The noise floor of one layer; the floor of a channel is looked up by its key."""

    layer = integer()
    delta = number()


class NoiseFloor(View):
    """The base against itself under another execution."""

    execution = text()
    layers = parts(FloorRow)
    largest_nll_change = number()


class DeadExperts(View):
    """Dead experts over several layers."""

    mean = part(Interval).or_none()


class Aggregate(View):
    """The state of one checkpoint over several layers."""

    min_entropy = part(Interval).or_none()
    mean_load_cv = part(Interval).or_none()
    dead_experts = part(DeadExperts).or_none()


class Scope(View):
    """The same for both checkpoints."""

    base = part(Aggregate).or_none()
    tuned = part(Aggregate).or_none()

    def side(self, name: str) -> Aggregate | None:
        """Return the state of ``base`` or ``tuned``."""
        return self.base if name == "base" else self.tuned


class Aggregates(View):
    """The state over the protected layers."""

    protected = part(Scope)
