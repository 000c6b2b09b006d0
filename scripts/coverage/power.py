"""Hold the promise of `moe_atlas.statistics.power` against a simulation, and write its table into docs/statistics.md.

A pilot of so many documents names the documents on which a tune without damage passes the margin with 90 % chance. The
simulation then draws that many documents again and again, and counts how often the gate on the mean passes.

Example: python -m scripts.coverage.power
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from moe_atlas.derivation.intervals.context import F64
from moe_atlas.statistics.bootstrap import domain_means
from moe_atlas.statistics.design import make_design
from moe_atlas.statistics.power import CHANCE, Spread, documents_to_pass, spread
from moe_atlas.statistics.resampled import Interval
from moe_atlas.verdict.gates.gate import PASS_FLOOR
from scripts.coverage.damage import CONFIDENCE, gated
from scripts.coverage.draws import Cell, document_of_windows, increases
from scripts.coverage.page import replace_section

SHAPES = ("normal", "skewed", "heavy-tailed")
MARGIN = 0.0075  # nats: some eighty to two hundred documents, so that neither the floor nor memory decides
MORE = 1.5
PAGE = Path("docs/statistics.md")


@dataclass(frozen=True)
class Kept:
    """What became of the promises of one population.

    Attributes:
        cell: the population, with the documents of a pilot.
        named: documents that each pilot named, float64 [P].
        passed: share of later samples of that size that passed, float64 [P].
        passed_more: the same on `MORE` times as many documents.
    """

    cell: Cell
    named: F64
    passed: F64
    passed_more: F64


def intervals(cell: Cell, draws: int, resamples: int, seed: Sequence[int]) -> list[Interval]:
    """The product's intervals of samples without any damage."""
    rng = np.random.default_rng(list(seed))
    document_W = document_of_windows(cell, rng)
    values_WR = increases(cell, document_W, 0.0, draws, rng)
    design = make_design(np.zeros_like(document_W), document_W, seed[0], resamples)
    return [gated(sample) for sample in domain_means(values_WR, design)]


def spread_of(found: Interval) -> Spread:
    """The spread that a receipt's interval shows."""
    return spread(
        found["estimate"],
        found["low"],
        found["high"],
        found["documents"],
        CONFIDENCE,
        pass_high=found["pass_high"],
        effective=found["effective_documents"],
    )


def share_passed(cell: Cell, documents: int, reps: int, resamples: int, seed: Sequence[int]) -> float:
    """The share of samples of so many documents whose mean passes the margin."""
    found = intervals(Cell(cell.shape, cell.unequal, documents, cell.correlation), reps, resamples, seed)
    bounds = [row["pass_high"] for row in found if row["effective_documents"] >= PASS_FLOOR]
    return len([bound for bound in bounds if bound is not None and bound < MARGIN]) / reps


def kept(cell: Cell, pilots: int, reps: int, resamples: int, seed: int) -> Kept:
    """Let pilots name documents, and count how often as many documents pass."""
    named, passed, more = [], [], []
    for number, pilot in enumerate(intervals(cell, pilots, resamples, (seed, 0))):
        documents = documents_to_pass(spread_of(pilot), MARGIN, PASS_FLOOR)
        if documents is None:
            continue
        named.append(documents)
        passed.append(share_passed(cell, documents, reps, resamples, (seed, 1, number)))
        more.append(share_passed(cell, int(MORE * documents), reps, resamples, (seed, 2, number)))
    return Kept(cell, np.array(named, dtype=np.float64), np.array(passed), np.array(more))


def table(found: Sequence[Kept], pilots: int, reps: int, resamples: int, seed: int) -> str:
    """The section's text."""
    command = f"python -m scripts.coverage.power --pilots {pilots} --reps {reps} --resamples {resamples} --seed {seed}"
    lines = [
        f"Command: `{command}`.",
        f"No damage, margin {MARGIN} nats, promised chance {CHANCE:.0%}, correlation 0.2 within a",
        "document. Named documents: median and middle 80 % of the pilots. Passed: mean over pilots, and middle 80 %.",
        "",
        f"| changes | pilot's documents | named documents | passed, per cent | on {MORE:g} times as many |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        low, middle, high = np.quantile(row.named, (0.1, 0.5, 0.9))
        least, most = 100 * np.quantile(row.passed, (0.1, 0.9))
        named = f"{middle:.0f} ({low:.0f} to {high:.0f})"
        passed = f"{100 * row.passed.mean():.0f} ({least:.0f} to {most:.0f})"
        more = f"{100 * row.passed_more.mean():.0f}"
        lines.append(f"| {row.cell.shape} | {row.cell.documents} | {named} | {passed} | {more} |")
    return "\n".join(lines)


def main() -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pilots", type=int, default=60, help="pilots of each population")
    parser.add_argument("--reps", type=int, default=150, help="later samples for each pilot")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, default=PAGE)
    chosen = parser.parse_args()
    found = []
    for shape, documents in product(SHAPES, (50, 100, 200)):
        cell = Cell(shape, False, documents, 0.2)
        found.append(kept(cell, chosen.pilots, chosen.reps, chosen.resamples, chosen.seed))
        print(cell, found[-1].passed.mean(), np.median(found[-1].named), flush=True)
    body = table(found, chosen.pilots, chosen.reps, chosen.resamples, chosen.seed)
    replace_section(chosen.page, "power", body)


if __name__ == "__main__":
    main()
