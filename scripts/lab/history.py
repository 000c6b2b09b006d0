"""The paper's three facts as gate series, through `atlas history`.

Every leg of training ends in an audit against the base, recorded in a run's ledger under the calibrated budgets.

Example: python -m scripts.lab.history
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from moe_atlas.api import AuditOptions, Recording, audit, baseline
from moe_atlas.calibration.policy_text import policy_file
from moe_atlas.ledger.history import History, read_history
from moe_atlas.ledger.store import Ledger
from scripts.coverage.page import replace_section
from scripts.lab.audits import base_of
from scripts.lab.families import FAMILIES, Family
from scripts.lab.pairs import LIGHT, NARROW, Pair
from scripts.lab.training import tune
from scripts.lab.verdicts import calibration_of, registered
from scripts.training.checkpoint import write
from scripts.training.recipes import Tune

ROOT = Path("lab")
FAMILY = "deepseek_v3"
LEG = 20  # optimiser steps between two gates

REPLAY = replace(LIGHT, steps=LEG)
CHAT = replace(LIGHT, steps=LEG, task="sums")
SHIFT = replace(NARROW, steps=LEG, trains="backbone", lr=2e-3)
REPAIR = replace(LIGHT, steps=LEG, task=None, items=0, replay=36, trains="backbone", lr=3e-3)


@dataclass(frozen=True)
class Series:
    """A run: what the paper says happens, and the legs that should show it."""

    run: str
    fact: str
    legs: tuple[Tune, ...]


SERIES = (
    Series("stage", "1: preservation through a change of objective", (REPLAY, REPLAY, CHAT, CHAT)),
    Series(
        "frozen",
        "2: loss falls, overlap and occupancy degrade, margins rise; experts and router are frozen",
        (SHIFT, SHIFT, SHIFT, SHIFT),
    ),
    Series(
        "window",
        "3: degradation, recovery, and loss of the recovery; experts and router are frozen",
        (SHIFT, SHIFT, REPAIR, REPAIR, SHIFT, SHIFT),
    ),
)


def run_series(family: Family, series: Series, root: Path) -> History:
    """Train leg by leg from the base and audit each against it."""
    place = root / "history" / series.run
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    plain = Pair("history", "", "", "", lambda _, base: base)
    text = policy_file(calibration_of(family, root), [], "policy.yaml")
    probes = registered(family, plain, text, root).config.path
    options = AuditOptions(
        dtype="float32", threads=1, policy_from=probes.with_name(probes.name.replace("probes-", "policy-"))
    )
    tensors = base_of(family, root)
    base = root / family.name / "base"
    runs = place / "runs"
    baseline(
        base,
        probes,
        receipt=place / "0.json",
        recording=Recording(series.run, runs, step=0),
        options=options,
    )
    for number, leg in enumerate(series.legs, start=1):
        tensors = tune(family, tensors, replace(leg, seed=number))
        write(tensors, family.config, place / f"step-{number * LEG}")
        recording = Recording(series.run, runs, step=number * LEG)
        receipt = place / f"{number}.json"
        audit(
            base,
            place / f"step-{number * LEG}",
            probes,
            receipt=receipt,
            recording=recording,
            options=options,
        )
        print(f"  {series.run}: gate at step {number * LEG}", flush=True)
    return read_history(Ledger(series.run, runs), [place])


def table(history: History) -> str:
    """The gates of a run as Markdown."""
    lines = [
        "| step | verdict | gate | C2 | dead | load CV | min entropy | State1 | task NLL | margin trap |",
        "|" + "---|" * 10,
    ]
    for reading in history.readings.values():
        gate = reading.gate
        figures = (gate.overlap, gate.dead_experts, gate.load_cv, gate.min_entropy, gate.set_margin, gate.nll)
        numbers = " | ".join("–" if value is None else f"{value:.4g}" for value in figures)
        colour = f"{reading.colour or '–'} {reading.state}"
        trap = "yes" if reading.margin_trap else ""
        lines.append(f"| {gate.step} | {gate.verdict or 'baseline'} | {colour} | {numbers} | {trap} |")
    return "\n".join(lines)


def section(found: Sequence[tuple[Series, History]]) -> str:
    """The generated part of the page."""
    parts = ["Command: `python -m scripts.lab.history` (after `make lab`)."]
    for series, history in found:
        last = history.last
        parts.append(f"**Fact {series.fact}** (run `{series.run}`)")
        parts.append(table(history))
        if last is not None:
            parts.append(
                f"`atlas history` ends in: {last.colour}, {last.state}; do: {last.action}; means: {last.meaning}"
            )
    return "\n\n".join(parts)


def main() -> None:
    """All three series."""
    torch.set_num_threads(1)
    family = FAMILIES[FAMILY]
    found = [(series, run_series(family, series, ROOT)) for series in SERIES]
    replace_section(Path("docs/lab.md"), "history", section(found))


if __name__ == "__main__":
    main()
