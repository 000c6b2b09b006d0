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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_atlas.errors import UsageError
from moe_atlas.ledger.recording import Recording
from moe_atlas.options import AuditOptions
from moe_atlas.probes.lock import lock_path
from moe_atlas.receipt.files import require_apart, window_path
from moe_atlas.receipt.lineage import against_previous, previous_facts
from moe_atlas.receipt.write import as_arrays, check_writable, write_receipt
from moe_atlas.results import Receipt

if TYPE_CHECKING:
    from moe_atlas.auditing.processes.group import Group

Source = str | os.PathLike[str]


def audit(
    base: Source,
    tuned: Source,
    probe: Source,
    *,
    receipt: Source = "receipt.json",
    force: bool = False,
    resume: bool = False,
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
        resume: keep the state after every layer beside the receipt, and go on from what an interrupted audit left.
        recording: the run whose ledger takes the result.
        options: how to run.

    Raises:
        AtlasError: for everything a user can cause; no receipt has been written then.
    """
    place = _Place(Path(receipt), force, resume, recording or Recording())
    return _run(Path(base), Path(tuned), Path(probe), place, options or AuditOptions())


def baseline(
    checkpoint: Source,
    probe: Source,
    *,
    receipt: Source = "baseline.json",
    force: bool = False,
    resume: bool = False,
    previous: Source | None = None,
    recording: Recording | None = None,
    options: AuditOptions | None = None,
) -> Receipt:
    """Record the state of one checkpoint; it licenses no claim of preservation.

    Arguments and errors are those of `audit`, and `previous`: an earlier receipt of the run, whose checkpoint's bytes
    this one's are held against, class by class.
    """
    earlier = None if previous is None else Path(previous)
    place = _Place(Path(receipt), force, resume, recording or Recording(), earlier)
    return _run(Path(checkpoint), None, Path(probe), place, options or AuditOptions())


@dataclass(frozen=True)
class _Place:
    """Where a result goes and what it follows."""

    receipt: Path
    force: bool
    resume: bool
    recording: Recording
    previous: Path | None = None


def _run(base: Path, tuned: Path | None, probe: Path, place: _Place, options: AuditOptions) -> Receipt:
    from moe_atlas.auditing.processes.join import joined  # imports torch, which reading a receipt must not

    if options.place is not None and place.resume:
        step = "leave it out, or run the audit in one process"
        raise UsageError("E_RANK", "--resume", "several processes keep no state between layers", step)
    with joined(options.place, cuda=options.device == "cuda") as group:
        body = _recorded(base, tuned, probe, place, options, group)
        return Receipt(place.receipt, group.leave(body))


def _recorded(
    base: Path, tuned: Path | None, probe: Path, place: _Place, options: AuditOptions, group: Group
) -> dict[str, Any] | None:
    """Do this process's part of the work; the one that leads writes the receipt and returns it."""
    from moe_atlas.auditing.resume import owns, state_paths
    from moe_atlas.auditing.run import measure

    if not group.leads:
        measure(base, tuned, probe, options, group)
        return None
    kept = state_paths(place.receipt)
    # A receipt that this audit wrote itself, and was killed before it was recorded, is written anew.
    force = place.force or (place.resume and owns(kept[0], place.receipt))
    check_writable(place.receipt, force)
    inputs = (base, tuned, probe, lock_path(probe), options.policy_from, options.baseline, place.previous)
    require_apart((place.receipt, window_path(place.receipt)), (*inputs, *options.attempts))
    head = place.recording.head()
    previous = None if place.previous is None else previous_facts(place.previous)
    options = replace(options, resume=kept if place.resume else None)
    facts, arrays = measure(base, tuned, probe, options, group)
    parent = _parent(place.recording, head, previous, facts["checkpoints"]["base"])
    body = write_receipt(facts | {"parent": parent}, as_arrays(arrays), place.receipt, force=force)
    place.recording.record(place.receipt)
    for path in kept if place.resume else ():
        path.unlink(missing_ok=True)
    return body


def _parent(
    recording: Recording,
    head: dict[str, Any] | None,
    previous: dict[str, Any] | None,
    checkpoint: dict[str, Any],
) -> dict[str, Any] | None:
    """What a receipt follows: the ledger's head, an earlier receipt, and why; None when nothing."""
    parent = {
        "ledger": head,
        "receipt": None if previous is None else against_previous(previous, checkpoint),
        "reason": recording.reason,
    }
    return {key: value for key, value in parent.items() if value is not None} or None


__all__ = ["AuditOptions", "Receipt", "Recording", "audit", "baseline"]
