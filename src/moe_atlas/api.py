"""The Python interface: what the command line does, as functions.

from moe_atlas import audit
receipt = audit("base.ckpt", "tuned.ckpt", "probes.yaml", receipt="receipt.json")
receipt.verdict            # "pass", "fail" or "inconclusive"
receipt.exit_code          # 0, 1 or 3
receipt.layer_array("pair.boundary_drift")        # estimate, low, high of every routed layer, float64 [L, 3]
receipt.windows()["output.nll_tuned"]             # one number a window, float64 [W]
receipt.frame("domains")                          # a pandas table, where pandas is installed
receipt.report("report.html")
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_atlas.auditing.options import AuditOptions
from moe_atlas.ledger.recording import Recording
from moe_atlas.receipt.lineage import against_previous, previous_facts
from moe_atlas.receipt.write import as_arrays, check_writable, write_receipt
from moe_atlas.results import Receipt

Source = str | os.PathLike[str]


def audit(
    base: Source,
    tuned: Source,
    probe: Source,
    *,
    receipt: Source = "receipt.json",
    force: bool = False,
    recording: Recording | None = None,
    options: AuditOptions | None = None,
) -> Receipt:
    """Compare two checkpoints on a registered probe set and write a receipt.

    Args:
        base: base checkpoint: folder, Hugging Face snapshot or `.safetensors` file.
        tuned: tuned checkpoint.
        probe: registered probe file.
        receipt: where the receipt goes.
        force: replace an existing receipt.
        recording: the run whose ledger takes the result.
        options: how to run.

    Raises:
        AtlasError: for everything a user can cause; no receipt has been written then.
    """
    place = _Place(Path(receipt), force, recording or Recording())
    return _run(Path(base), Path(tuned), Path(probe), place, options or AuditOptions())


def baseline(
    checkpoint: Source,
    probe: Source,
    *,
    receipt: Source = "baseline.json",
    force: bool = False,
    previous: Source | None = None,
    recording: Recording | None = None,
    options: AuditOptions | None = None,
) -> Receipt:
    """Record the state of one checkpoint; it licenses no claim of preservation.

    Arguments and errors are those of `audit`, and `previous`: an earlier receipt of the run, whose checkpoint's bytes
    this one's are held against, class by class.
    """
    place = _Place(
        Path(receipt), force, recording or Recording(), None if previous is None else Path(previous)
    )
    return _run(Path(checkpoint), None, Path(probe), place, options or AuditOptions())


@dataclass(frozen=True)
class _Place:
    """Where a result goes and what it follows."""

    receipt: Path
    force: bool
    recording: Recording
    previous: Path | None = None


def _run(base: Path, tuned: Path | None, probe: Path, place: _Place, options: AuditOptions) -> Receipt:
    from moe_atlas.auditing.run import measure  # imports torch, which reading a receipt must not

    check_writable(place.receipt, place.force)
    head = place.recording.head()
    previous = None if place.previous is None else previous_facts(place.previous)
    facts, arrays = measure(base, tuned, probe, options)
    parent: dict[str, Any] = {} if head is None else {"ledger": head}
    if previous is not None:
        parent["receipt"] = against_previous(previous, facts["checkpoints"]["base"])
    if place.recording.reason is not None:
        parent["reason"] = place.recording.reason
    body = write_receipt(
        facts | {"parent": parent or None}, as_arrays(arrays), place.receipt, force=place.force
    )
    place.recording.record(place.receipt)
    return Receipt(place.receipt, body)


__all__ = ["AuditOptions", "Receipt", "Recording", "audit", "baseline"]
