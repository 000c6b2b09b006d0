"""What the machine alone moves on a trained model: order, compute dtype, threads; into docs/statistics.md.

Example: python -m scripts.lab.noise
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moe_atlas.api import AuditOptions
from moe_atlas.auditing.layer.noise_floor import MEASURED
from moe_atlas.auditing.run import measure
from scripts.coverage.page import replace_section
from scripts.lab.audits import prepare
from scripts.lab.families import FAMILIES

ROOT = Path("lab")
CHANNELS = tuple(key for key in MEASURED if key != "coordinate_drift")  # which is gated on z
CASES = (("float32", "order"), ("bfloat16", "order"), ("float32", "bfloat16"))


def floor(family: str, dtype: Any, execution: Any) -> dict[str, Any]:
    """The noise floor of a family's base under one pair of executions."""
    base = ROOT / family / "base"
    options = AuditOptions(dtype=dtype, threads=1, noise_floor=execution)
    found: dict[str, Any] = measure(base, base, prepare(ROOT), options)[0]["noise_floor"]
    return found


def threads_differ(family: str) -> bool:
    """Whether one thread and two give different window data."""
    base = ROOT / family / "base"
    runs = [measure(base, None, prepare(ROOT), AuditOptions(dtype="float32", threads=n))[1] for n in (1, 2)]
    return not all(np.array_equal(runs[0][key], runs[1][key], equal_nan=True) for key in runs[0])


def main() -> None:
    """Measure and write the table."""
    lines = [
        "Command: `python -m scripts.lab.noise` (after `make lab`). The largest value over the layers.",
        "",
        "| family | computed in | against | delta (scores) | "
        + " | ".join(CHANNELS)
        + " | largest change of NLL |",
        "|---|---|---|---|" + "---|" * len(CHANNELS) + "---|",
    ]
    for family in FAMILIES:
        for dtype, execution in CASES:
            found = floor(family, dtype, execution)
            values = [max(row[key] for row in found["layers"]) for key in ("delta", *CHANNELS)]
            cells = " | ".join(f"{value:.2g}" for value in [*values, found["largest_nll_change"]])
            against = "another order" if execution == "order" else execution
            lines.append(f"| {family} | {dtype} | {against} | {cells} |")
    moved = {family: "moves some bits" if threads_differ(family) else "moves nothing" for family in FAMILIES}
    lines += ["", "Two threads instead of one: " + ", ".join(f"{f} {m}" for f, m in moved.items()) + "."]
    replace_section(Path("docs/statistics.md"), "noise", "\n".join(lines))


if __name__ == "__main__":
    main()
