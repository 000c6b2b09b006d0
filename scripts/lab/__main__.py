"""`make lab`: train, tune, break and audit; write docs/lab/pairs.csv and docs/lab.md.

What is in ./lab already is not made again: delete the folder after changing a recipe.

Example: python -m scripts.lab
"""

from __future__ import annotations

import argparse
from multiprocessing import get_context
from pathlib import Path

from scripts.coverage.page import replace_section
from scripts.lab.audits import measure, prepare
from scripts.lab.families import FAMILIES
from scripts.lab.page import section
from scripts.lab.table import rows, write_csv, write_documents
from scripts.lab.verdicts import judge_family

ROOT = Path("lab")
DOCS = Path("docs")


def main() -> None:
    """The whole lab."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge-only", action="store_true", help="judge what was measured so far")
    chosen = parser.parse_args()
    prepare(ROOT)
    if not chosen.judge_only:
        with get_context("spawn").Pool(len(FAMILIES)) as pool:
            pool.starmap(measure, [(name, ROOT) for name in FAMILIES])
    calibrations = {name: judge_family(family, ROOT) for name, family in FAMILIES.items()}
    found = [row for family in FAMILIES.values() for row in rows(family, ROOT)]
    write_csv(found, DOCS / "lab" / "pairs.csv")
    write_documents(FAMILIES.values(), ROOT, DOCS / "lab" / "documents.csv")
    replace_section(DOCS / "lab.md", "lab", section(found, calibrations, FAMILIES))


if __name__ == "__main__":
    main()
