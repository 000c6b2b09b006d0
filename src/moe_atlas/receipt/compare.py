"""Compare two receipts: which figures changed, and whether the intervals show it. Torch-free.

Receipts of one registration measure the same windows. So `compare` pairs the windows, and the change of every mean has
an interval; the bounds of all layers hold at once. For receipts of different registrations `compare` can only check
whether the intervals are disjoint. That shows fewer changes, and a caveat says so.

Shape legend: W windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from moe_atlas.channels import DRIFTS
from moe_atlas.derivation.intervals.context import Context, make_context
from moe_atlas.receipt.array_file import Arrays
from moe_atlas.statistics.bootstrap import domain_means
from moe_atlas.statistics.resampled import Interval, Resampled, undefined
from moe_atlas.statistics.simultaneous import simultaneous_lower
from moe_atlas.views.measured import Interval as Stored
from moe_atlas.views.measured import LayerView
from moe_atlas.views.receipt import ReceiptView

HIGHER, LOWER, SAME, UNCLEAR, UNDEFINED = "higher", "lower", "same", "unclear", "undefined"
PAIR_KEYS = tuple(channel.key for channel in DRIFTS)
HEALTH_KEYS = ("overlap", "set_margin")


@dataclass(frozen=True)
class Change:
    """A figure in both receipts.

    Attributes:
        figure: its key, such as ``content_drift`` or ``nll``.
        where: its layer or domain, such as ``layer 3`` or ``domain code``.
        first: its interval in the first receipt.
        second: its interval in the second.
        difference: second minus first, with its interval; None if the windows do not pair.
        says: ``higher``, ``lower``, ``same`` (bit for bit in every window), ``unclear`` or ``undefined``.
    """

    figure: str
    where: str
    first: Mapping[str, Any]
    second: Mapping[str, Any]
    difference: Mapping[str, Any] | None
    says: str


@dataclass(frozen=True)
class Comparison:
    """The comparison of two receipts.

    Attributes:
        paired: whether both receipts measured the same windows.
        caveats: reasons why the receipts may answer different questions; empty for two attempts at one objective.
        verdicts: both verdicts.
        predicates: name, outcome in the first receipt, outcome in the second receipt.
        changes: the figures of the protected layers, then those of the domains.
    """

    paired: bool
    caveats: list[str]
    verdicts: tuple[str | None, str | None]
    qualified: tuple[list[str], list[str]]
    predicates: list[tuple[str, str, str]]
    changes: list[Change]

    def describe(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class VerifiedReceipt:
    """A verified receipt with its window arrays.

    Attributes:
        receipt: content of the receipt.
        windows: the window arrays by name.
    """

    receipt: Mapping[str, Any]
    windows: Arrays

    @property
    def view(self) -> ReceiptView:
        """The receipt with its types."""
        return ReceiptView(self.receipt)

    @property
    def subject(self) -> str:
        """The checkpoint whose figures are compared: the tuned one of an audit, the only one of a baseline."""
        return "base" if self.view.is_baseline else "tuned"

    @property
    def protected(self) -> frozenset[int]:
        """Indices of the protected layers."""
        return frozenset(self.view.probe.protected_layers)

    @property
    def lock(self) -> str:
        """Digest of the registration."""
        lock = self.view.probe.lock
        return str(lock and lock.sha256)


def compare(first: VerifiedReceipt, second: VerifiedReceipt) -> Comparison:
    """Compare the second of two verified receipts with the first."""
    one, other = first.view, second.view
    paired = first.lock == second.lock and _same_windows(first, second)
    predicates = [
        (name, predicate.outcome, other.predicates[name].outcome)
        for name, predicate in one.predicates.items()
    ]
    context = make_context(first.receipt, first.windows) if paired else None
    return Comparison(
        paired=paired,
        caveats=_caveats(first, second),
        verdicts=(one.verdict, other.verdict),
        qualified=(list(one.qualified), list(other.qualified)),
        predicates=predicates,
        changes=[*_layers(first, second, context), *_domains(first, second, context)],
    )


def _same_windows(first: VerifiedReceipt, second: VerifiedReceipt) -> bool:
    return all(
        np.array_equal(first.windows[f"windows.{key}"], second.windows[f"windows.{key}"])
        for key in ("domain", "document", "tokens")
    )


def _caveats(first: VerifiedReceipt, second: VerifiedReceipt) -> list[str]:
    """Return the reasons why the receipts may answer different questions, the most serious first."""
    one, other = first.view, second.view
    digests = [receipt.checkpoint("base").digest for receipt in (one, other)]
    found = {
        f"of different kinds: {one.kind} and {other.kind}": one.kind != other.kind,
        "different base checkpoints: drift is measured from different places": digests[0] != digests[1]
        and one.kind == other.kind == "audit",
        "different registrations: the windows do not pair, only disjoint intervals count": first.lock
        != second.lock,
        "different policies: budgets, stage or margins changed between them": one.probe.policy.facts
        != other.probe.policy.facts,
        "different protected layers: those of both are compared": one.probe.protected_layers
        != other.probe.protected_layers,
        "different evaluation sets": one.probe.evaluation.facts != other.probe.evaluation.facts,
        "different arithmetic (compute dtype or router)": _arithmetic(one) != _arithmetic(other),
    }
    return [words for words, holds in found.items() if holds]


def _arithmetic(receipt: ReceiptView) -> tuple[str | None, str | None]:
    return receipt.method.compute_dtype, receipt.method.router_arithmetic


def _layers(first: VerifiedReceipt, second: VerifiedReceipt, context: Context | None) -> list[Change]:
    """Return the changes of every figure in the layers that both receipts protect."""
    rows = [
        {layer.layer: layer for layer in side.view.layers if layer.layer in side.protected}
        for side in (first, second)
    ]
    numbers = sorted(set(rows[0]) & set(rows[1]))
    audits = first.subject == second.subject == "tuned"
    figures = [*(("pair", key) for key in PAIR_KEYS if audits), *((None, key) for key in HEALTH_KEYS)]
    out = []
    for part, key in figures:
        names = [[f"layers.{n}.{part or side.subject}.{key}" for n in numbers] for side in (first, second)]
        intervals = [
            [_stored(row[n], part or side.subject, key) for n in numbers]
            for side, row in zip((first, second), rows, strict=True)
        ]
        samples = None if context is None else [
            _paired(context, first.windows, second.windows, a, b) for a, b in zip(*names, strict=True)
        ]  # fmt: skip
        places = [f"layer {n}" for n in numbers]
        out += _changes(key, places, intervals, samples, context)
    return out


def _stored(layer: LayerView, part: str, key: str) -> Stored:
    found = layer.pair if part == "pair" else layer.side(part)
    return (found and found.interval(key)) or Stored({})


def _domains(first: VerifiedReceipt, second: VerifiedReceipt, context: Context | None) -> list[Change]:
    rows = [{row.name: row for row in side.view.domains} for side in (first, second)]
    names = [name for name in rows[0] if name in rows[1]]
    keys = [f"nll_{side.subject}" for side in (first, second)]
    intervals = [
        [row[name].interval(key) or Stored({}) for name in names] for row, key in zip(rows, keys, strict=True)
    ]
    out = []
    for place, name in enumerate(names):
        sample = None if context is None else [_domain(context, first, second, name)]
        pair = [[side[place]] for side in intervals]
        out += _changes("nll", [f"domain {name}"], pair, sample, context)
    return out


def _paired(context: Context, first: Arrays, second: Arrays, one: str, other: str) -> Resampled:
    """Return the mean change of a figure over the base-role windows."""
    if one not in first or other not in second:
        return undefined("not measured in both")
    change_W = np.asarray(second[other], dtype=np.float64) - np.asarray(first[one], dtype=np.float64)
    return domain_means(change_W[:, None], context.design)[0]


def _domain(context: Context, first: VerifiedReceipt, second: VerifiedReceipt, name: str) -> Resampled:
    number = [domain["name"] for domain in context.domains].index(name)
    chosen_W = np.asarray(context.windows["windows.domain"] == number)
    values = [np.asarray(side.windows[f"output.nll_{side.subject}"])[chosen_W] for side in (first, second)]
    return domain_means((values[1] - values[0])[:, None], context.domain_design(chosen_W))[0]


def _changes(
    figure: str,
    places: Sequence[str],
    intervals: Sequence[Sequence[Stored]],
    samples: Sequence[Resampled] | None,
    context: Context | None,
) -> list[Change]:
    """Return the changes of one figure in all its places; their bounds hold at once."""
    pairs = list(zip(*intervals, strict=True))
    if samples is None or context is None:
        return [
            Change(figure, place, one.facts, other.facts, None, _disjoint(one, other))
            for place, (one, other) in zip(places, pairs, strict=True)
        ]
    lower = simultaneous_lower(samples, context.tail)
    upper = simultaneous_lower([_mirrored(sample) for sample in samples], context.tail)
    return [
        Change(figure, place, one.facts, other.facts, _shown(context, sample), _says(sample, low, high))
        for place, (one, other), sample, low, high in zip(places, pairs, samples, lower, upper, strict=True)
    ]


def _mirrored(sample: Resampled) -> Resampled:
    t_B = None if sample.t_B is None else -sample.t_B
    return Resampled(
        -sample.estimate, sample.se, t_B, sample.windows, sample.documents, sample.reason, sample.exact
    )


def _shown(context: Context, sample: Resampled) -> Interval:
    return context.interval(sample)


def _says(sample: Resampled, low: float | None, mirrored: float | None) -> str:
    if not np.isfinite(sample.estimate):
        return UNDEFINED
    if sample.estimate == 0.0 and sample.se == 0.0:
        return SAME
    if low is not None and low > 0.0:
        return HIGHER
    return LOWER if mirrored is not None and mirrored > 0.0 else UNCLEAR


def _disjoint(one: Stored, other: Stored) -> str:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return UNDEFINED
    if other.low > one.high:
        return HIGHER
    return LOWER if other.high < one.low else UNCLEAR
