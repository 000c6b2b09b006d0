"""Write the generated section of docs/statistics.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_atlas.verdict.gates.gate import PASS_FLOOR
from scripts.coverage.damage import FITTED, LOOSE, MARGIN, Rates
from scripts.coverage.layers import BUDGET, LAYERS, Family

BEGIN = "<!-- generated section {name}; do not edit below -->"
END = "<!-- end of section {name} -->"
NOMINAL = 0.025
UNDETERMINED = 0.5  # share of healthy pairs that must pass for a cell to count as decided
TOLERANCE = 3.0  # Monte Carlo standard errors above which a rate is marked


def replace_section(page: Path, name: str, body: str) -> None:
    """Put `body` between the page's two marks of that name; add the marks at the end where there are none."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text(f"{before}{begin}\n\n{body.strip()}\n\n{end}{after}", encoding="utf-8")


def error_of(rate: float, reps: int) -> float:
    """Monte Carlo standard error of a share."""
    return float(np.sqrt(max(rate * (1.0 - rate), 1.0 / reps) / reps))


def marked(rate: float, reps: int) -> str:
    """A rate in per cent, bold where it lies above nominal by more than Monte Carlo error explains."""
    shown = f"{100 * rate:.1f}"
    return f"**{shown}**" if rate > NOMINAL + TOLERANCE * error_of(NOMINAL, reps) else shown


def damage_table(rates: Sequence[Rates], reps: int) -> str:
    """The cells: one row a shape, sizes and number of documents; the three correlations side by side."""
    lines = [
        "| damage | windows | documents | interval covers | bound below truth | **gate: false pass** "
        "| loose guard: false pass | false fail | healthy passes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows: dict[tuple[str, bool, int], list[Rates]] = {}
    for rate in rates:
        rows.setdefault((rate.cell.shape, rate.cell.unequal, rate.cell.documents), []).append(rate)
    for (shape, unequal, documents), cells in rows.items():
        cells = sorted(cells, key=lambda found: found.cell.correlation)
        columns = [
            " / ".join(f"{100 * c.covered:.1f}" for c in cells),
            " / ".join(marked(c.bound_missed, reps) for c in cells),
            " / ".join(marked(c.false_pass, reps) for c in cells),
            " / ".join(marked(c.false_pass_loose, reps) for c in cells),
            " / ".join(marked(c.false_fail, reps) for c in cells),
            " / ".join(f"{100 * c.healthy_pass:.0f}" for c in cells),
        ]
        kind = "unequal" if unequal else "equal"
        lines.append(f"| {shape} | {kind} | {documents} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def layer_table(families: Sequence[Family], reps: int) -> str:
    """False failures over 48 layers."""
    lines = [
        "| drift | neighbours' correlation | documents | some pointwise bound | **some simultaneous bound** |",
        "|---|---|---|---|---|",
    ]
    for f in families:
        simultaneous = marked(f.simultaneous, reps)
        lines.append(
            f"| {f.shape} | {f.neighbours:g} | {f.documents} | {100 * f.pointwise:.1f} | {simultaneous} |"
        )
    return "\n".join(lines)


def summary(rates: Sequence[Rates], reps: int) -> str:
    """The sentences a reader needs, counted from the table."""
    open_cells = [r for r in rates if r.cell.documents >= PASS_FLOOR]
    closed = [r for r in rates if r.cell.documents < PASS_FLOOR]
    undecided = [r for r in open_cells if r.healthy_pass < UNDETERMINED]
    limit = NOMINAL + TOLERANCE * error_of(NOMINAL, reps)
    missed_closed = sum(r.bound_missed > limit for r in closed)
    missed_open = sum(r.bound_missed > limit for r in open_cells)
    over = [r for r in open_cells if r.false_pass > limit]
    worst = max(open_cells, key=lambda r: r.false_pass)
    worst_loose = max(open_cells, key=lambda r: r.false_pass_loose)
    return "\n".join(
        [
            f"* Under {PASS_FLOOR} documents the interval's upper bound misses too often in {missed_closed} of "
            f"{len(closed)} cells. The tool answers undetermined there: {sum(r.false_pass > 0 for r in closed)} "
            "cells with a pass.",
            f"* From {PASS_FLOOR} documents on the interval's bound misses too often in {missed_open} of "
            f"{len(open_cells)} cells. The whole gate (stricter bound, effective documents, tail guard) passes "
            f"falsely too often in {len(over)}; the worst is {_named(worst)} at {100 * worst.false_pass:.1f} %.",
            f"* In {len(undecided)} of these {len(open_cells)} cells fewer than half of the healthy pairs pass: the "
            f"answer there is undetermined. {sum(r.cell.unequal for r in undecided)} of them have unequal windows.",
            f"* With a per-document limit far above what the margin asks for, the worst cell is "
            f"{_named(worst_loose)} at {100 * worst_loose.false_pass_loose:.1f} %.",
        ]
    )


def _named(rate: Rates) -> str:
    cell = rate.cell
    sizes = "unequal" if cell.unequal else "equal"
    return f"{cell.shape}, {sizes} windows, {cell.documents} documents, correlation {cell.correlation:g}"


def section(
    rates: Sequence[Rates], families: Sequence[Family], reps: int, family_reps: int, resamples: int, seed: int
) -> str:
    """The whole generated section."""
    error, family_error = 100 * error_of(NOMINAL, reps), 100 * error_of(NOMINAL, family_reps)
    options = f"--reps {reps} --layer-reps {family_reps} --resamples {resamples} --seed {seed}"
    return f"""\
### Simulated damage, exactly at the margin

Command: `make coverage`, that is `python -m scripts.coverage {options}`.
{reps} replications a cell, {resamples} resamples each; the Monte Carlo standard error of a rate of 2.5 % is
{error:.2f} points (a little more with unequal windows: 250 replications share their sizes). The true mean
increase is the margin, {MARGIN:g} nats, so every pass is a false one and every fail is a false one; in the last
column nothing is damaged. All in per cent, for correlations 0 / 0.2 / 0.5 within a document. Bold: above the
nominal 2.5 % by more than {TOLERANCE:g} Monte Carlo errors. The gate's guard: at most
{FITTED["document_share"]:.0%} of documents above {FITTED["document_nll"]:g} nats; the loose guard: above
{LOOSE["document_nll"]:g} nats.

{summary(rates, reps)}

{damage_table(rates, reps)}

### {LAYERS} layers, all exactly at their budget

Every layer's true drift is its budget of {BUDGET:g}, so every layer that fails is a false failure.
{family_reps} replications a cell, Monte Carlo standard error {family_error:.2f} points.

{layer_table(families, family_reps)}
"""
