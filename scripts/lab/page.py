"""docs/lab.md: intervention x channel x verdict, and what that says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_atlas.calibration.budgets import Calibration
from moe_atlas.channels import BUDGETS, DRIFTS
from moe_atlas.falsification.readings import CHANNELS, DISTANCE
from scripts.lab.families import Family
from scripts.lab.pairs import all_pairs

Row = Mapping[str, Any]
WORDS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "open"}


def section(
    rows: Sequence[Row], calibrations: Mapping[str, Calibration], families: Mapping[str, Family]
) -> str:
    """The generated part of the page."""
    return "\n\n".join(
        [
            "Command: `make lab`. Numbers are means over the layers; forgetting is the mean increase of the NLL over "
            "the three base domains, nats per byte.",
            "### Budgets, from six replay tunes of each family that are never judged",
            budgets(calibrations),
            "### The verdicts in sum",
            summary(rows, calibrations, families),
            "### Every judged pair",
            *(f"**{name}**\n\n{table([row for row in rows if row['family'] == name])}" for name in families),
        ]
    )


def budgets(calibrations: Mapping[str, Calibration]) -> str:
    """The budgets of both families."""
    keys = [*BUDGETS, "tau", "nll", "kl", "document_nll"]
    lines = ["| budget | " + " | ".join(calibrations) + " |", "|---|" + "---|" * len(calibrations)]
    for key in keys:
        cells = [calibration.budgets[key] for calibration in calibrations.values()]
        shown = [
            f"{c.value:g} ({min(c.healthy):.3g} to {max(c.healthy):.3g})" if c.value else c.rule
            for c in cells
        ]
        lines.append(f"| {key} | " + " | ".join(shown) + " |")
    shares = " | ".join(f"{calibration.document_share:g}" for calibration in calibrations.values())
    return "\n".join([*lines, f"| document_share | {shares} |"])


def table(rows: Sequence[Row]) -> str:
    """One line a pair."""
    head = ["pair", "kind", "expected", "verdict", "atlas", "base domains", "forgetting"]
    head += [*(channel.short for channel in DRIFTS), "overlap drop", "distance", "gates that failed"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        numbers = [row[key] for key in (*CHANNELS, "overlap_drop", DISTANCE)]
        cells = [
            row["pair"],
            row["kind"],
            row["expect"],
            WORDS[row["verdict"]],
            row["rewrite"],
            row["damage"],
        ]
        cells += [f"{row['forgetting']:+.3f}", *(f"{value:.3g}" for value in numbers), row["failed"] or "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(
    rows: Sequence[Row], calibrations: Mapping[str, Calibration], families: Mapping[str, Family]
) -> str:
    """False passes, false fails, damage named by its object, and what a parameter distance would have done."""
    margins = {name: calibration.budgets["nll"].value or np.inf for name, calibration in calibrations.items()}
    broken = [row for row in rows if row["expect"] == "fail"]
    sound = [row for row in rows if row["expect"] == "pass"]
    passed = [row for row in broken if row["verdict"] == "pass"]
    left_open = [row for row in broken if row["verdict"] == "inconclusive"]
    failed = [row for row in sound if row["verdict"] == "fail"]
    forgot = [row for row in rows if row["forgetting_worst_low"] is not None]
    forgot = [row for row in forgot if row["forgetting_worst_low"] > margins[row["family"]]]
    missed = [row for row in forgot if row["verdict"] == "pass"]
    named = [(row, _named(row, families)) for row in broken]
    wanted = [(row, gate) for row, gate in named if gate]
    right = [row for row, gate in wanted if gate in row["failed"].split()]
    wrong = [row for row, gate in wanted if gate not in row["failed"].split()]
    quiet = [row for row in rows if row["rewrite"] == "rewritten" and row["damage"] == "undamaged"]
    return "\n".join(
        [
            f"* {len(rows)} judged pairs, {len(broken)} broken by construction, {len(sound)} sound by construction.",
            f"* False passes among the broken: {len(passed)} ({_names(passed)}); left open: {len(left_open)} "
            f"({_names(left_open)}).",
            f"* False fails among the sound: {len(failed)} ({_names(failed)}); passed: "
            f"{sum(row['verdict'] == 'pass' for row in sound)}.",
            f"* Pairs whose forgetting lies above the margin for certain: {len(forgot)}; passed all the same: "
            f"{len(missed)} ({_names(missed)}).",
            f"* Damage with an object to name: {len(wanted)}; named by the right gate: {len(right)}; not named: "
            f"{_names(wrong)}.",
            f"* Atlas rewritten while no base domain is shown damaged: {len(quiet)} ({_names(quiet)}).",
            *_distance(rows, calibrations),
        ]
    )


def _distance(rows: Sequence[Row], calibrations: Mapping[str, Calibration]) -> list[str]:
    """The same question put to one number: is there a threshold on the distance that separates?"""
    out = []
    for family in calibrations:
        own = [row for row in rows if row["family"] == family]
        sound = [row[DISTANCE] for row in own if row["expect"] == "pass" and row["kind"] != "relabelling"]
        broken = [row for row in own if row["expect"] == "fail"]
        below = [row for row in broken if row[DISTANCE] <= max(sound)]
        out.append(
            f"* {family}: a plain parameter distance that lets every sound tune through (largest {max(sound):.3g}) "
            f"catches {len(broken) - len(below)} of {len(broken)} broken pairs and misses {_names(below)}."
        )
    return out


def _named(row: Row, families: Mapping[str, Family]) -> str:
    return next(pair.named for pair in all_pairs(families[row["family"]]) if pair.name == row["pair"])


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row['family'].split('_')[0]} {row['pair']}" for row in rows) or "none"
