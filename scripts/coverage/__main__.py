"""`make coverage`: simulate the grid and write its tables into docs/statistics.md.

Example: python -m scripts.coverage --reps 2000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts.coverage import damage, layers
from scripts.coverage.page import replace_section, section

PAGE = Path("docs/statistics.md")


def main() -> None:
    """Run both grids."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reps", type=int, default=2000, help="replications of a damage cell")
    parser.add_argument("--layer-reps", type=int, default=500, help="replications of a family of layers")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, default=PAGE)
    chosen = parser.parse_args()
    rates = []
    for cell in damage.grid():
        rates.append(damage.simulate(cell, chosen.reps, chosen.resamples, chosen.seed))
        print(rates[-1], flush=True)
    families = []
    for cell in layers.grid():
        families.append(layers.simulate(*cell, chosen.layer_reps, chosen.resamples, chosen.seed))
        print(families[-1], flush=True)
    body = section(rates, families, chosen.reps, chosen.layer_reps, chosen.resamples, chosen.seed)
    replace_section(chosen.page, "coverage", body)


if __name__ == "__main__":
    main()
