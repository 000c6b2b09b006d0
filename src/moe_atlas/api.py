"""The Python interface: the commands `audit`, `baseline` and `quick` as functions.

from moe_atlas import audit
receipt = audit("base.ckpt", "tuned.ckpt", "probes.yaml", receipt="receipt.json")
receipt.verdict            # "pass", "fail" or "inconclusive"
receipt.exit_code          # 0, 1 or 3
receipt.layer_array("pair.boundary_drift")        # estimate, low, high of every routed layer, float64 [L, 3]
receipt.windows()["output.nll_tuned"]             # one number per window, float64 [W]
receipt.frame("domains")                          # a pandas table, where pandas is installed
receipt.report("report.html")
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_atlas.errors import UsageError
from moe_atlas.ledger.recording import Recording
from moe_atlas.look.request import Request
from moe_atlas.options import AuditOptions
from moe_atlas.probes.lock import lock_path
from moe_atlas.receipt.files import own_paths, require_apart
from moe_atlas.receipt.lineage import against_previous, previous_facts
from moe_atlas.receipt.write import as_arrays, check_writable, write_receipt
from moe_atlas.results import Receipt
from moe_atlas.token_arrays import split

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
        tuned: tuned checkpoint, in one of the same forms, or the folder of an adapter of the base.
        probe: registered probe file.
        receipt: path of the receipt to write.
        force: replace an existing receipt.
        resume: keep the state after every layer beside the receipt, and continue from the state that an interrupted
            audit left there.
        recording: the run whose ledger records the receipt.
        options: options of how the audit runs.

    Raises:
        AtlasError: for every error that a user can cause; no receipt is written.
    """
    target = _Target(Path(receipt), force, resume, recording or Recording())
    return _run(Path(base), Path(tuned), Path(probe), target, options or AuditOptions())


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
    """Measure one checkpoint on a registered probe set and write a receipt, which licenses no claim of preservation.

    The other arguments and the errors are those of `audit`.

    Args:
        checkpoint: the checkpoint: folder, Hugging Face snapshot or `.safetensors` file.
        probe: registered probe file.
        receipt: path of the receipt to write.
        force: see `audit`.
        resume: see `audit`.
        previous: an earlier receipt of the run; the receipt compares the bytes of both checkpoints, class by class.
        recording: see `audit`.
        options: see `audit`.
    """
    earlier = None if previous is None else Path(previous)
    target = _Target(Path(receipt), force, resume, recording or Recording(), earlier)
    return _run(Path(checkpoint), None, Path(probe), target, options or AuditOptions())


def quick(
    base: Source,
    tuned: Source,
    *,
    data: Source | None = None,
    tokenizer: str | None = None,
    documents: int = 60,
    seed: int = 0,
    margin: float = 0.05,
    receipt: Source = "quick.receipt.json",
    force: bool = False,
    announce: Callable[[dict[str, Any]], None] | None = None,
    options: AuditOptions | None = None,
) -> Receipt:
    """Look at a pair without configuration and write a receipt that judges nothing: its verdict is `inconclusive`.

    Args:
        base: see `audit`.
        tuned: see `audit`.
        data: a folder of documents; None for the prose and the code of the standard library.
        tokenizer: path of a ``tokenizer.json``, or ``bytes``; None for the one beside the base.
        documents: most documents of a domain.
        seed: seed of the choice of documents.
        margin: nats per token by which a domain's loss must certainly rise to be a finding.
        receipt: path of the receipt to write.
        force: replace an existing receipt.
        announce: called with the estimate of `plan` before a look at large checkpoints.
        options: options of how the audit runs.

    Raises:
        AtlasError: for every error that a user can cause; no receipt is written.
    """
    from moe_atlas.look.measuring import look

    target, folder = Path(receipt), None if data is None else Path(data)
    check_writable(target, force)
    require_apart(own_paths(target), (Path(base), Path(tuned), folder))
    request = Request(folder, tokenizer, documents, seed, margin)
    facts, arrays = look(Path(base), Path(tuned), request, options or AuditOptions(), announce)
    return Receipt(target, write_receipt(facts, as_arrays(arrays), target, force=force))


@dataclass(frozen=True)
class _Target:
    """The place of the receipt and its predecessor.

    Attributes:
        receipt: path of the receipt.
        force: whether to replace an existing receipt.
        resume: whether to keep the state after every layer.
        recording: the run whose ledger records the receipt.
        previous: an earlier receipt of the run.
    """

    receipt: Path
    force: bool
    resume: bool
    recording: Recording
    previous: Path | None = None


def _run(base: Path, tuned: Path | None, probe: Path, target: _Target, options: AuditOptions) -> Receipt:
    from moe_atlas.auditing.processes.join import (
        joined,  # this imports torch, which readers of receipts do not need
    )

    if options.place is not None and target.resume:
        step = "leave --resume out, or run the audit in one process"
        raise UsageError("E_RANK", "--resume", "several processes keep no state between layers", step)
    with joined(options.place, cuda=options.device == "cuda") as group:
        body = _measure_and_record(base, tuned, probe, target, options, group)
        return Receipt(target.receipt, group.leave(body))


def _measure_and_record(
    base: Path, tuned: Path | None, probe: Path, target: _Target, options: AuditOptions, group: Group
) -> dict[str, Any] | None:
    """Do this process's share of the audit; the leading process writes, records and returns the receipt."""
    from moe_atlas.auditing.resume import owns, state_paths
    from moe_atlas.auditing.run import measure

    if not group.leads:
        measure(base, tuned, probe, options, group)
        return None
    states = state_paths(target.receipt)
    # If this audit was killed after writing the receipt and before recording it, it writes the receipt again.
    force = target.force or (target.resume and owns(states[0], target.receipt))
    check_writable(target.receipt, force)
    inputs = (base, tuned, probe, lock_path(probe), options.policy_from, options.baseline, target.previous)
    require_apart(own_paths(target.receipt), (*inputs, *options.attempts))
    head = target.recording.head()
    previous = None if target.previous is None else previous_facts(target.previous)
    options = replace(options, resume=states if target.resume else None)
    facts, arrays = measure(base, tuned, probe, options, group)
    parent = _parent(target.recording, head, previous, facts["checkpoints"]["base"])
    windows, tokens = split(arrays)
    body = write_receipt(
        facts | {"parent": parent}, as_arrays(windows), target.receipt, tokens=tokens, force=force
    )
    target.recording.record(target.receipt)
    for path in states if target.resume else ():
        path.unlink(missing_ok=True)
    return body


def _parent(
    recording: Recording,
    head: dict[str, Any] | None,
    previous: dict[str, Any] | None,
    checkpoint: dict[str, Any],
) -> dict[str, Any] | None:
    """Return the facts that a receipt follows: the ledger's head, an earlier receipt and a reason; None without any."""
    parent = {
        "ledger": head,
        "receipt": None if previous is None else against_previous(previous, checkpoint),
        "reason": recording.reason,
    }
    return {key: value for key, value in parent.items() if value is not None} or None


__all__ = ["AuditOptions", "Receipt", "Recording", "audit", "baseline", "quick"]
