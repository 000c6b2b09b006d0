"""Every supported variant against transformers: `python -m scripts.parity [NAME …]`.

Saves a tiny model with every parameter randomised, replays it, and prints the worst differences: float32 with the
router in float32, and bfloat16 with native router arithmetic. Exits with 1 when a float32 comparison misses 1e-4 or a
routed set differs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from scripts.oracle import tiny
from scripts.oracle.parity import Difference, compare

TOLERANCE = 1e-4


def main(names: list[str]) -> int:
    chosen = [case for case in tiny.CASES if not names or any(case.startswith(name) for name in names)]
    print(
        f"{'variant':34} {'float32 logits':>15} {'sets':>5} {'weights':>9} {'bfloat16 logits':>16} {'sets':>5}"
    )
    with tempfile.TemporaryDirectory() as folder:
        return int(not all([row(case, Path(folder)) for case in chosen]))  # noqa: C419 - print every row


def row(case: str, root: Path) -> bool:
    try:
        single = compare(tiny.save(case, root / case), torch.float32, "float32")
        half = None
        if case not in tiny.INEXACT:
            half = compare(tiny.save(case, root / f"{case}-bf16", dtype=torch.bfloat16), torch.bfloat16)
    except Exception as error:  # noqa: BLE001 - a table with one broken row is still a table
        print(f"{case:34} {type(error).__name__}: {str(error)[:300]}")
        return False
    compared = f"{_half(half):>16} {half.sets:5}" if half else f"  {tiny.INEXACT[case]}"
    print(f"{case:34} {single.logits:15.1e} {single.sets:5} {single.weights:9.0e} {compared}")
    return single.logits < TOLERANCE and single.sets == 0 and single.layers > 0


def _half(half: Difference) -> str:
    return "exact" if half.exact else f"{half.logits:.1e}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
