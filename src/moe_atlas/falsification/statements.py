"""The five predictions by which the atlas programme can be refuted, each as a statement with a statistic.

A statement is `supported` if its interval lies above 0, `not supported` if the interval lies below 0, and
`undetermined` otherwise. With too few pairs it is always `undetermined`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_atlas.falsification.correlations import (
    Statistic,
    correlation,
    left_out_errors,
    partial,
    with_interval,
    within,
)
from moe_atlas.falsification.readings import CHANNELS, DISTANCE, QUANTITIES, RAW, TELEMETRY, Reading

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FEWEST_PAIRS = 20
FEWEST_MATCHES = 10  # a percentile interval over fewer matches does not keep its level
FEWEST_EXPANSIVE = 3
CALIPER = 0.1  # of the task's NLL at the base: two tunes this close have learned it equally well
SUPPORTED, NOT_SUPPORTED, UNDETERMINED = "supported", "not supported", "undetermined"


@dataclass(frozen=True)
class Statement:
    """A prediction, its answer, and the statistics behind the answer."""

    key: str
    text: str
    answer: str
    statistics: tuple[Statistic, ...]
    reason: str


def statements(readings: Sequence[Reading]) -> list[Statement]:
    """Return all five statements, in the programme's order."""
    usable = [
        r for r in readings if np.isfinite([r.forgetting, *map(r.values.__getitem__, QUANTITIES)]).all()
    ]
    few = "" if len(usable) >= FEWEST_PAIRS else f"{len(usable)} pairs, fewer than {FEWEST_PAIRS}"
    return [
        _coordinates(usable, few),
        _telemetry(usable, few),
        _distance(usable, few),
        _matched(readings),
        _expansive(readings),
    ]


def associations(readings: Sequence[Reading]) -> list[tuple[str, Statistic, Statistic]]:
    """Return each quantity's rank correlation with forgetting, alone and given the parameter distance."""
    table = Table(readings)
    out = []
    for key in QUANTITIES:
        alone = table.interval(key, lambda at, key=key: correlation(at(key), at("forgetting")))  # type: ignore[misc]
        given = table.interval(
            key,
            lambda at, key=key: partial(at(key), at("forgetting"), at(DISTANCE)[:, None]),  # type: ignore[misc]
        )
        out.append((key, alone, given))
    return out


Column = Callable[[str], F64]


class Table:
    """Readings as columns, ranked within families on every resample."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self.families = [reading.family for reading in readings]
        self.columns = {key: np.array([r.values[key] for r in readings]) for key in QUANTITIES}
        self.columns["forgetting"] = np.array([reading.forgetting for reading in readings])

    def interval(self, name: str, statistic: Callable[[Column], float]) -> Statistic:
        """Return a statistic of ranked columns with its interval."""

        def on(index: I64) -> float:
            return statistic(lambda key: within(self.columns[key], self.families, index))

        return with_interval(name, on, self.families)

    def gain(self, name: str, more: Sequence[str], less: Sequence[str]) -> Statistic:
        """Return the share of the left-out squared error of `less` that `more` saves.

        Both predict ranks of forgetting. The fits are made once; the interval resamples the errors of pairs.
        """
        everyone = np.arange(len(self.families))
        ranked = {key: within(values, self.families, everyone) for key, values in self.columns.items()}
        errors = [
            left_out_errors(np.column_stack([ranked[key] for key in keys]), ranked["forgetting"])
            for keys in (less, more)
        ]

        def saved(index: I64) -> float:
            before, after = float(errors[0][index].sum()), float(errors[1][index].sum())
            return 1.0 - after / before if before > 0.0 else 0.0

        return with_interval(name, saved, self.families)


def _coordinates(readings: Sequence[Reading], few: str) -> Statement:
    text = "normalised coordinates track forgetting better than raw norms do"
    found: tuple[Statistic, ...] = ()
    if not few:
        table = Table(readings)
        found = tuple(
            table.interval(
                f"rho(coordinate_drift_z) - rho({raw})",
                lambda at, raw=raw: (
                    correlation(at("coordinate_drift_z"), at("forgetting"))  # type: ignore[misc]
                    - correlation(at(raw), at("forgetting"))
                ),
            )
            for raw in RAW
        )
    return _answered("coordinates", text, found, few)


def _telemetry(readings: Sequence[Reading], few: str) -> Statement:
    text = "overlap and boundary diagnostics say more about forgetting than routing telemetry alone"
    found: tuple[Statistic, ...] = ()
    if not few:
        more = (*TELEMETRY, "overlap_drop", "boundary_drift")
        found = (Table(readings).gain("left-out error saved over telemetry", more, TELEMETRY),)
    return _answered("telemetry", text, found, few)


def _distance(readings: Sequence[Reading], few: str) -> Statement:
    text = "atlas drift predicts forgetting better than undifferentiated parameter distance"
    found: tuple[Statistic, ...] = ()
    if not few:
        found = (Table(readings).gain("left-out error saved over parameter distance", CHANNELS, (DISTANCE,)),)
    return _answered("distance", text, found, few)


def _matched(readings: Sequence[Reading]) -> Statement:
    """Compare rewritten with preserved tunes that learned the same task equally well."""
    text = "at matched task success, tunes that preserve the atlas forget less"
    differences = []
    preserved = [r for r in readings if r.outcome == "preserved"]
    for other in (r for r in readings if r.outcome == "rewritten"):
        twins = [r for r in preserved if r.family == other.family and _alike(r, other)]
        if twins:
            differences.append(other.forgetting - float(np.mean([twin.forgetting for twin in twins])))
    if len(differences) < FEWEST_MATCHES:
        few = f"{len(differences)} rewritten tunes have a preserved twin of equal success, fewer than {FEWEST_MATCHES}"
        return Statement("matched", text, UNDETERMINED, (), few)
    values = np.array(differences)
    found = with_interval(
        "mean forgetting, rewritten minus preserved twin (nats)",
        lambda index: float(values[index].mean()),
        ["all"] * len(values),
    )
    return _answered("matched", text, (found,), "")


def _alike(first: Reading, second: Reading) -> bool:
    """Return whether two tunes learned a common task equally well, to within the caliper."""
    return any(
        a.name == b.name and abs(a.nll - b.nll) <= CALIPER * max(a.base, b.base)
        for a in first.tasks
        for b in second.tasks
    )


def _expansive(readings: Sequence[Reading]) -> Statement:
    """Count the outcomes of the third predicate."""
    text = "tasks that seem knowledge-expansive do need their charts redefined"
    avoidable = sum(reading.classification == "misclassified" for reading in readings)
    needed = sum(reading.classification == "knowledge-expansive" for reading in readings)
    if avoidable:
        reason = (
            f"{avoidable} rewrites were avoidable: an attempt that preserves the atlas reached the target too"
        )
        return Statement("expansive", text, NOT_SUPPORTED, (), reason)
    if needed >= FEWEST_EXPANSIVE:
        return Statement(
            "expansive", text, SUPPORTED, (), f"{needed} rewrites without a preserving attempt that reached"
        )
    few = f"{needed} pairs were classified as knowledge-expansive, fewer than {FEWEST_EXPANSIVE}"
    reason = f"{few}; {_overlap(readings)}"
    return Statement("expansive", text, UNDETERMINED, (), reason)


def _overlap(readings: Sequence[Reading]) -> str:
    """Say how many tasks of rewriting tunes preserving tunes learned too, whatever stage was registered."""
    learned: dict[str, set[tuple[str, str]]] = {"preserved": set(), "rewritten": set()}
    for reading in readings:
        if reading.outcome in learned:
            learned[reading.outcome] |= {(reading.family, task.name) for task in reading.tasks}
    both = learned["rewritten"] & learned["preserved"]
    only = learned["rewritten"] - learned["preserved"]
    return f"of the tasks that rewriting tunes learned, preserving ones learned {len(both)} as well and {len(only)} not"


def _answered(key: str, text: str, found: tuple[Statistic, ...], few: str) -> Statement:
    if few:
        return Statement(key, text, UNDETERMINED, found, few)
    if all(statistic.low > 0.0 for statistic in found):
        return Statement(key, text, SUPPORTED, found, "every interval lies above 0")
    if any(statistic.high < 0.0 for statistic in found):
        return Statement(key, text, NOT_SUPPORTED, found, "an interval lies below 0")
    return Statement(key, text, UNDETERMINED, found, "an interval holds 0")
