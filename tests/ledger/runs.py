"""A run made of synthetic receipts: written, verified and recorded as the commands do it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_atlas.ledger import Entry, Ledger
from moe_atlas.ledger.recording import record_receipt
from moe_atlas.receipt.write import write_receipt
from tests.receipt import synthetic


def made_facts(kind: str = "audit", **rewrite: Any) -> dict[str, Any]:
    facts = synthetic.facts(kind, layers=(2,))
    facts["probe"]["domains"] = [d for d in facts["probe"]["domains"] if d["name"] in ("prose", "sft")]
    facts["probe"]["domains"][1]["success"]["at_most"] = 2.5
    facts["probe"]["policy"]["rewrite"] |= rewrite
    facts["probe"]["policy"]["resamples"] = 200
    return facts


def write(
    ledger: Ledger,
    path: Path,
    kind: str = "audit",
    seed: int = 0,
    scale: float = 1.0,
    change: Callable[[dict[str, Any]], Any] | None = None,
    **rewrite: Any,
) -> dict[str, Any]:
    """A receipt of this run, not yet recorded; `change` edits its facts."""
    facts = made_facts(kind, **rewrite)
    if change is not None:
        change(facts)
    facts["parent"] = {"ledger": ledger.head().describe()}
    return write_receipt(facts, synthetic.windows(facts, seed, scale=scale), path, force=True)


LOOSE = {"coordinate": 2.0, "boundary": 1.0, "transition": 0.69, "content": 1.0, "overlap_drop": 2.0}
LOOSE |= {"dead_share_rise": 1.0, "entropy_drop": 9.0, "load_cv_rise": 9.0}
"""Budgets that a synthetic pair of scale 1 stays within and one of scale 300 breaks."""


def gate(ledger: Ledger, path: Path, step: int, **how: Any) -> Entry:
    write(ledger, path, **how)
    return record_receipt(ledger, path, step=step)
