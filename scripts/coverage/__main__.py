"""`make coverage`: simulate the grid and write its tables into docs/statistics.md.

Example: python -m scripts.coverage --reps 2000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts.coverage import damage, layers, plasmode
from scripts.coverage.page import replace_section, section

PAGE = Path("docs/statistics.md")
REAL = Path("docs/lab/documents.csv")
PLASMODE_REPS = 250


def main() -> None:
    """Run both grids and the resampling of real documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reps", type=int, default=2000, help="replications of a damage cell")
    parser.add_argument("--layer-reps", type=int, default=500, help="replications of a family of layers")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--real-only", action="store_true", help="only resample the lab's documents")
    chosen = parser.parse_args()
    if chosen.real_only:
        real(chosen.page, chosen.resamples, chosen.seed)
        return
    rates = []
    for cell in damage.grid():
        rates.append(damage.simulate(cell, chosen.reps, chosen.resamples, chosen.seed))
        print(rates[-1], flush=True)
    families = []
    for shape, neighbours, documents in layers.grid():
        families.append(
            layers.simulate(shape, neighbours, documents, chosen.layer_reps, chosen.resamples, chosen.seed)
        )
        print(families[-1], flush=True)
    body = section(rates, families, chosen.reps, chosen.layer_reps, chosen.resamples, chosen.seed)
    replace_section(chosen.page, "coverage", body)
    real(chosen.page, chosen.resamples, chosen.seed)


def real(page: Path, resamples: int, seed: int) -> None:
    """Resample the lab's documents, where its table is there."""
    if not REAL.exists():
        return
    found = list(plasmode.populations(REAL))
    outcomes = [plasmode.simulate(found, n, PLASMODE_REPS, resamples, seed) for n in plasmode.DOCUMENTS]
    replace_section(page, "plasmode", plasmode.table(outcomes, PLASMODE_REPS))


if __name__ == "__main__":
    main()
