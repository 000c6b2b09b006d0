"""Record receipts and registrations in a run's ledger, once they are complete on the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_atlas.errors import UsageError
from moe_atlas.ledger.chain import Entry
from moe_atlas.ledger.receipts import ledger_head
from moe_atlas.ledger.records import receipt_body
from moe_atlas.ledger.store import DEFAULT_RUNS, Ledger
from moe_atlas.probes.lock import Lock
from moe_atlas.receipt.canonical import encode_receipt
from moe_atlas.receipt.verify import intact_receipt
from moe_atlas.text import shown


@dataclass(frozen=True)
class Recording:
    """The run to which a result belongs.

    Attributes:
        run: name of the run whose ledger records the result; None records nothing.
        runs: the folder that holds the runs.
        step: training step of the checkpoint.
        reason: reason for a new baseline, such as ``node failure``; a baseline with a reason is a resume.

    Raises:
        UsageError: E_RUN for a name that is no plain folder name, and for a step or reason without a run.
    """

    run: str | None = None
    runs: Path = DEFAULT_RUNS
    step: int | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.run is not None:
            Ledger(self.run, self.runs)
        elif self.step is not None or self.reason is not None:
            raise UsageError("E_RUN", "--step and --reason", "belong to a run", "name it with --run")

    def head(self) -> dict[str, Any] | None:
        """Check the whole chain and return the ledger's head before the measurement, for the receipt to carry.

        Raises:
            IntegrityError: E_LEDGER if a line was changed.
        """
        return None if self.run is None else Ledger(self.run, self.runs).head().describe()

    def record(self, path: Path) -> Entry | None:
        """Record a receipt, as `record_receipt`; without a run, return None."""
        return (
            None
            if self.run is None
            else record_receipt(Ledger(self.run, self.runs), path, self.step, self.reason)
        )


def record_receipt(ledger: Ledger, path: Path, step: int | None = None, reason: str | None = None) -> Entry:
    """Record an audit or a baseline in its run if its receipt is on the disk and re-derives.

    The receipt must carry, as ``parent.ledger``, the head that `Ledger.head` returned before the measurement. By this
    head the receipt shows later whether the ledger's tail was cut. A baseline with a reason is a resume.

    Args:
        ledger: the run's ledger.
        path: the receipt.
        step: training step of the checkpoint.
        reason: reason for a new baseline.

    Raises:
        IntegrityError: E_RECEIPT if the receipt does not re-derive, so that a partial run never becomes a reference.
        UsageError: E_RUN if the receipt was not written for this run.
        ResourceExhausted: E_LEDGER_WRITE if the entry cannot be written to the disk.
    """
    receipt = intact_receipt(path)
    head = ledger_head(receipt)
    if head is None or head.get("run") != ledger.run:
        problem = f"was not written for run {shown(ledger.run)}"
        raise UsageError("E_RUN", shown(str(path)), problem, f"audit again with --run {shown(ledger.run)}")
    kind = "audit" if receipt["kind"] == "audit" else ("resume" if reason else "baseline")
    sha256 = hashlib.sha256(encode_receipt(receipt)).hexdigest()  # digest of the verified bytes
    return ledger.append(kind, receipt_body(receipt, path, sha256, step, reason))


def registration_body(lock: Lock) -> dict[str, Any]:
    """Return the ledger's entry on a registration; `predecessor` is the registration that it replaced."""
    return {
        "lock": str(lock.path.resolve()),
        "probe": lock.body["name"],
        "registration": lock.content_sha256,
        "lock_sha256": lock.digest,
        "lock_policy_sha256": lock.policy_sha256,
        "policy_from": lock.policy_from,
        "registered_at": lock.registered_at,
        "predecessor": lock.predecessor,
    }
