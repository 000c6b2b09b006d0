"""`python -m scripts.bench [--small] [--only PART,…] [--write]`.

Builds the checkpoints under ./bench once (about 25 GB; the small ones: a few MB), runs the parts one after the other,
keeps their figures in results.json beside them, and prints the tables; with --write they replace those in
docs/performance.md. Parts that are not run keep the figures of their last run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from scripts.bench.ceilings import machine
from scripts.bench.measured import ROOT
from scripts.bench.sections import SECTIONS, Bench
from scripts.bench.table import render

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny shapes, seconds; the figures mean nothing")
    parser.add_argument("--only", help=f"some of: {','.join(SECTIONS)}")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    chosen = parser.parse_args()
    parts = chosen.only.split(",") if chosen.only else list(SECTIONS)
    if unknown := set(parts) - set(SECTIONS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}")
    work = ROOT / "bench" / ("small" if chosen.small else "full")
    bench = Bench.small(work) if chosen.small else Bench(work)
    kept = work / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for part in parts:
        print(f"bench: {part} …", file=sys.stderr, flush=True)
        results |= {part: SECTIONS[part](bench), "machine": machine()}
        kept.write_text(json.dumps(results, indent=1))
    text = render(results)
    print(text)
    if chosen.write:
        write(text, PAGE)


def write(text: str, page: Path) -> None:
    """Replace what stands between the markers of a page."""
    if not page.exists():
        page.write_text(f"# Performance\n\n{BEGIN}\n{END}\n")
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
