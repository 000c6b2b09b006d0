"""The table of channels: what is measured of a pair at a routed layer, and all that other modules know of it.

Policy, intervals, gates, claims, calibration and reports take their lists from here, so that a new channel is one
more entry. A test holds the hand-written places (the receipt's schema, the probe template) against the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MOST_EXPERTS = 1 << 16  # no layer has more; what holds for so many holds for any model

Kind = Literal["drift", "surrogate", "format", "expert", "overlap", "occupancy"]


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One quantity of a pair at one routed layer.

    Attributes:
        key: its name under ``layers[].pair`` of a receipt, and of its window array where it has one.
        kind: how its number arises. ``drift``: a mean over windows that is 0 where nothing moved, with a noise floor;
            where few documents moved, a bound that needs no variance stands in. ``surrogate``: a mean over windows
            that is never gated. ``format``: the same, measured only where the two checkpoints store their experts in
            different formats. ``expert``: a mean for each expert, of which the largest counts. ``overlap``: how far
            the mean overlap fell. ``occupancy``: a change of the counts of routed tokens.
        range: the smallest and the largest value it can take.
        most: the largest value in a layer, from its experts divided by k; None where `range` says it for every layer.
        exact_needs: the inputs of a layer that, where they hold equal values, make it exactly 0: the ``states`` that
            enter the layer, the ``gain`` in front of the router, the ``router`` with that gain and all biases, the
            routed ``experts``. Empty for a quantity that equal checkpoints do not make 0.
        visible: whether it compares visible updates P_z u, which some architectures do not define.
        undefined_with: the quantity that it is made of, and without which it is undefined.
        counts_experts: whether it moves in steps of one expert.
        budget: its name in ``policy.rewrite`` and among the gates; empty for what is not gated.
        must_be_written: whether a probe file has to name its budget, be it as null.
        default: the budget where a probe file names none; None for not gated.
        claim: what moved, in the claim ``{claim}_moved``; empty for no such claim.
        label: the gate's name in a sentence.
        heading: its column in the map of layers by channels.
        short: its column in a terminal; empty for none.
    """

    key: str
    kind: Kind
    range: tuple[float, float]
    most: Callable[[float], float] | None = None
    exact_needs: tuple[str, ...] = ()
    visible: bool = False
    undefined_with: str = ""
    counts_experts: bool = False
    budget: str = ""
    must_be_written: bool = False
    default: float | None = None
    claim: str = ""
    label: str = ""
    heading: str = ""
    short: str = ""

    def ceiling(self, experts: int = MOST_EXPERTS, top_k: int = 1) -> float:
        """Return the largest value in a layer of so many experts, `top_k` of them in use; in any layer by default."""
        return self.range[1] if self.most is None else self.most(experts / top_k)


SHARE = (0.0, 1.0)

CHANNELS = (
    Channel(key="coordinate_drift", kind="drift", range=(0.0, 2.0), exact_needs=("states", "gain")),
    Channel(
        key="coordinate_drift_z",  # gated in place of the published one: a compensated gain does not move it
        kind="drift",
        range=(0.0, 2.0),
        exact_needs=("states",),
        budget="coordinate",
        must_be_written=True,
        claim="coordinates",
        label="coordinate drift",
        heading="coordinate (z)",
        short="coord. z",
    ),
    Channel(
        key="boundary_drift",
        kind="drift",
        range=SHARE,
        exact_needs=("router",),  # it compares routers at one state, so that native states do not matter
        budget="boundary",
        must_be_written=True,
        claim="boundaries",
        label="boundary drift",
        heading="boundary",
        short="boundary",
    ),
    Channel(key="native_boundary_drift", kind="drift", range=SHARE, exact_needs=("states", "router")),
    Channel(
        key="transition_drift",
        kind="drift",
        range=(0.0, math.log(2.0)),
        exact_needs=("router",),
        budget="transition",
        must_be_written=True,
        claim="transitions",
        label="transition drift",
        heading="transition",
        short="transition",
    ),
    Channel(key="content_quantisation", kind="format", range=SHARE, visible=True),
    Channel(
        key="content_drift",
        kind="drift",
        range=SHARE,
        exact_needs=("gain", "experts"),
        visible=True,
        budget="content",
        must_be_written=True,
        claim="content",
        label="content drift",
        heading="content",
        short="content",
    ),
    Channel(
        key="expert_content",
        kind="expert",
        range=SHARE,
        exact_needs=("gain", "experts"),
        undefined_with="content_drift",
        budget="expert_content",
        # Three times what the lab's sound tunes reach, and below one expert with half its own norm of noise
        # (docs/lab.md).
        default=0.35,
        label="content of the worst expert",
        heading="worst expert",
        short="expert",
    ),
    Channel(key="smooth_boundary", kind="surrogate", range=SHARE, exact_needs=("router",)),
    Channel(key="smooth_boundary_published", kind="surrogate", range=SHARE),
    Channel(
        key="smooth_content", kind="surrogate", range=SHARE, exact_needs=("gain", "experts"), visible=True
    ),
    Channel(key="smooth_content_published", kind="surrogate", range=SHARE, visible=True),
    Channel(key="smooth_content_coverage", kind="surrogate", range=SHARE, visible=True),
    Channel(
        key="overlap_drop",
        kind="overlap",
        range=(-2.0, 2.0),
        exact_needs=("states", "router", "experts"),
        undefined_with="overlap",
        budget="overlap_drop",
        label="overlap drop",
        heading="overlap drop",
        short="overlap ↓",
    ),
    Channel(
        key="dead_share_rise",
        kind="occupancy",
        range=(-1.0, 1.0),
        exact_needs=("states", "router"),
        counts_experts=True,
        budget="dead_share_rise",
        label="rise of dead experts' share",
        heading="dead share",
    ),
    Channel(
        key="entropy_drop",
        kind="occupancy",
        range=(-math.inf, math.inf),
        most=math.log,  # a load that falls on the same k of E experts has entropy ln k instead of ln E
        exact_needs=("states", "router"),
        budget="entropy_drop",
        label="load entropy drop",
        heading="entropy drop",
        short="entropy ↓",
    ),
    Channel(
        key="load_cv_rise",
        kind="occupancy",
        range=(-math.inf, math.inf),
        most=lambda ratio: math.sqrt(max(0.0, ratio - 1.0)),  # of such a load, instead of 0
        exact_needs=("states", "router"),
        budget="load_cv_rise",
        label="load CV rise",
        heading="load CV rise",
    ),
)
"""In the order of a receipt's pair; the budgets among them in the order of a policy."""

CHANNEL = {channel.key: channel for channel in CHANNELS}
GATED = tuple(channel for channel in CHANNELS if channel.budget)
"""The channels with a budget."""
DRIFTS = tuple(channel for channel in GATED if channel.kind == "drift")
"""The drift channels of the paper, in the form in which they are gated."""
DISTANCES = tuple(channel for channel in GATED if channel.kind in ("drift", "expert"))
"""The drift channels and the content drift of the worst expert: how far a layer is from the base's."""
GUARDS = tuple(channel for channel in GATED if channel.default is not None)
"""Gated unless a policy says otherwise, so that they alone do not make an audit out of a policy."""
REGISTERED = tuple(channel for channel in GATED if channel.default is None)
"""Gated only where a policy names a budget."""
OCCUPANCY = tuple(channel for channel in CHANNELS if channel.kind == "occupancy")
BUDGETS = {channel.budget: channel for channel in GATED}
