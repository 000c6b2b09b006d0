"""`make falsify`: hold the programme's falsifiers against the lab's judged pairs; the page stays whatever it says.

Example: python -m scripts.lab.falsified
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_atlas.api import Receipt
from moe_atlas.falsification.correlations import Statistic
from moe_atlas.falsification.readings import Reading, reading_of
from moe_atlas.falsification.statements import associations, statements
from scripts.coverage.page import replace_section
from scripts.lab.families import FAMILIES
from scripts.lab.pairs import all_pairs
from scripts.lab.verdicts import judged_path

ROOT = Path("lab")
SURGERY = (
    "expert swap",
    "clone",
    "expert dropped",
    "router noise",
    "router collapse",
    "lost on resume",
    "relabelling",
)


def readings(root: Path, only_training: bool = False) -> list[Reading]:
    """The lab's judged pairs; on request those that training made."""
    return [
        reading_of(Receipt.load(path).body, pair.name)
        for family in FAMILIES.values()
        for pair in all_pairs(family)
        if (path := judged_path(family, pair.name, root)).exists()
        and not (only_training and pair.kind in SURGERY)
    ]


def section(found: Sequence[Reading]) -> str:
    """Statements and associations as Markdown."""
    lines = ["| prediction | answer | statistic | why |", "|---|---|---|---|"]
    for one in statements(found):
        shown = "<br>".join(f"{s.name}: {_interval(s)}" for s in one.statistics) or "–"
        lines.append(f"| {one.text} | **{one.answer}** | {shown} | {one.reason} |")
    lines += [
        "",
        "| quantity | rank correlation with forgetting | given parameter distance |",
        "|---|---|---|",
    ]
    lines += [
        f"| {key} | {_interval(alone)} | {_interval(given)} |" for key, alone, given in associations(found)
    ]
    return "\n".join(lines)


def _interval(one: Statistic) -> str:
    return f"{one.estimate:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"


def main() -> None:
    """Write both tables."""
    every, trained = readings(ROOT), readings(ROOT, only_training=True)
    if not trained:
        raise SystemExit(f"no judged pair under {ROOT}/judged: run make lab first")
    body = f"""\
Command: `make falsify`. {len(every)} judged pairs of the lab, ranks within each family, 95 % intervals over resampled
pairs.

### All pairs

{section(every)}

### The {len(trained)} pairs without surgery on experts and routers

{section(trained)}
"""
    replace_section(Path("docs/falsify.md"), "falsify", body)


if __name__ == "__main__":
    main()
