"""The context of every derivation: the registered settings, the window arrays and the resampling design.

Shape legend: W windows, Wb base-role windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.channels import CHANNELS, SHARE
from moe_atlas.errors import UsageError
from moe_atlas.statistics.design import Design, make_design
from moe_atlas.statistics.passing import passing_bound
from moe_atlas.statistics.resampled import Interval, Resampled, interval
from moe_atlas.verdict.sameness import replayed_alike
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.window_arrays import BUDGET, CONTROLS

F64 = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """The settings of one receipt and its window data.

    Attributes:
        kind: ``audit`` or ``baseline``.
        policy: the registered policy, with the keys of the probe file.
        domains: the registered domains, in order.
        windows: named window arrays.
        base_W: whether each window belongs to a base-role domain, bool [W].
        design: strata and documents of the base-role windows.
        protected: indices of the protected layers.
        identical: whether the checkpoints hold the same values in every replayed tensor.
    """

    kind: str
    policy: Facts
    domains: tuple[Facts, ...]
    windows: Arrays
    base_W: NDArray[np.bool_]
    design: Design
    protected: frozenset[int]
    identical: bool

    @property
    def is_pair(self) -> bool:
        """Whether the audit compared two checkpoints."""
        return self.kind != "baseline"

    @property
    def confidence(self) -> float:
        """Registered two-sided confidence."""
        return float(self.policy["confidence"])

    @property
    def tail(self) -> float:
        """One-sided error of every bound."""
        return (1.0 - self.confidence) / 2.0

    @property
    def base_windows(self) -> int:
        """Wb, the number of base-role windows."""
        return int(self.base_W.sum())

    def rewrite(self, key: str) -> Any:
        """Return a registered entry of the policy's rewrite block; None if there is none."""
        return self.policy["rewrite"].get(key)

    def array(self, name: str) -> F64 | None:
        """Return a window array as float64; None if it was not measured."""
        found = self.windows.get(name)
        return None if found is None else np.asarray(found, dtype=np.float64)

    def interval(self, sample: Resampled, key: str = "") -> Interval:
        """Return the receipt's interval of a sample, clipped to the range of its key."""
        floor, ceiling = RANGES.get(key, (-np.inf, np.inf))
        return interval(sample, self.confidence, floor, ceiling)

    def passing(self, sample: Resampled, key: str) -> dict[str, float | None]:
        """Return the entries that decide whether a mean passes, clipped to its range; empty for other samples."""
        _, ceiling = RANGES.get(key, (-np.inf, np.inf))
        return passing_bound(sample, self.tail, ceiling)

    def domain_design(self, domain_W: NDArray[np.bool_]) -> Design:
        """Return the design of the windows of one domain; it resamples their documents as `design` does."""
        return _design(self.windows, domain_W, self.design.seed, self.design.resamples)


_POSITIVE = (0.0, float("inf"))
RANGES: dict[str, tuple[float, float]] = {
    **{channel.key: channel.range for channel in CHANNELS},
    "overlap": (-1.0, 1.0),
    "smooth_overlap": (-1.0, 1.0),
    "overlap_specificity": (-2.0, 2.0),
    "top1_agreement": SHARE,
    **dict.fromkeys(
        (*BUDGET, *CONTROLS, "ratio", "set_margin", "group_margin")
        + ("jump", "jump_idealised", "jump_relative", "jump_near_boundary", "field_norm")
        + ("load_cv", "load_entropy", "effective_experts", "max_violation", "min_share", "dead_experts")
        + ("active_experts", "min_entropy", "mean_load_cv", "experts_active_mean")
        + ("nll_base", "nll_tuned", "kl", "smooth_tail"),
        _POSITIVE,
    ),
    **{
        f"{metric}_{side}": SHARE
        for metric in ("token_accuracy", "exact_match")
        for side in ("base", "tuned")
    },
}


def make_context(receipt: Facts, windows: Arrays) -> Context:
    """Return the context of a receipt's facts and window arrays."""
    probe = receipt["probe"]
    domains = tuple(probe["domains"])
    roles = np.array([domain["role"] == "base" for domain in domains], dtype=bool)
    base_W = roles[np.asarray(windows["windows.domain"], dtype=np.int64)]
    if not base_W.any():
        raise UsageError("E_NO_WINDOWS", "windows", "no window of a base-role domain was measured")
    policy = probe["policy"]
    return Context(
        kind=receipt["kind"],
        policy=policy,
        domains=domains,
        windows=windows,
        base_W=base_W,
        design=_design(windows, base_W, int(probe["windows"]["seed"]), int(policy["resamples"])),
        protected=frozenset(int(layer) for layer in probe["protected_layers"]),
        identical=receipt["kind"] != "baseline" and replayed_alike(ReceiptView(receipt)),
    )


def _design(windows: Arrays, chosen_W: NDArray[np.bool_], seed: int, resamples: int) -> Design:
    domain_W, document_W = windows["windows.domain"][chosen_W], windows["windows.document"][chosen_W]
    return make_design(domain_W, document_W, seed, resamples)
