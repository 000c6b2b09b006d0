"""Recording receipts and registrations: only what is whole on the disk becomes part of a run."""

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
    """Which run a result belongs to.

    Attributes:
        run: name of the run whose ledger takes the result; None records nothing.
        runs: the folder that holds the runs.
        step: training step of the checkpoint.
        reason: why a baseline was taken anew, such as ``node failure``; it makes the baseline a resume.

    Raises:
        UsageError: E_RUN for a name that could be anything but one folder, or a step or reason without a run.
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
        """The ledger's head before the measurement, which the receipt carries; the whole chain is checked.

        Raises:
            IntegrityError: E_LEDGER when a line is not what was written.
        """
        return None if self.run is None else Ledger(self.run, self.runs).head().describe()

    def record(self, path: Path) -> Entry | None:
        """Record a receipt, as `record_receipt`; None without a run."""
        return (
            None
            if self.run is None
            else record_receipt(Ledger(self.run, self.runs), path, self.step, self.reason)
        )


def record_receipt(ledger: Ledger, path: Path, step: int | None = None, reason: str | None = None) -> Entry:
    """Record an audit or a baseline in its run, once its receipt is on the disk and re-derives.

    The receipt must carry, as ``parent.ledger``, the head that `Ledger.head` gave before the measurement;
    that is what makes it a witness of the ledger's tail. A baseline with a reason is a resume.

    Args:
        ledger: the run's ledger.
        path: the receipt.
        step: training step of the checkpoint.
        reason: why a baseline was taken anew.

    Raises:
        IntegrityError: E_RECEIPT when the receipt does not re-derive: a partial run never becomes a
            reference.
        UsageError: E_RUN when the receipt was not written for this run.
        ResourceExhausted: E_LEDGER_WRITE when the entry cannot be brought to the disk.
    """
    receipt = intact_receipt(path)
    head = ledger_head(receipt)
    if head is None or head.get("run") != ledger.run:
        problem = f"was not written for run {shown(ledger.run)}"
        raise UsageError("E_RUN", shown(str(path)), problem, f"audit again with --run {shown(ledger.run)}")
    kind = "audit" if receipt["kind"] == "audit" else ("resume" if reason else "baseline")
    sha256 = hashlib.sha256(encode_receipt(receipt)).hexdigest()  # of the bytes that verified, not read again
    return ledger.append(kind, receipt_body(receipt, path, sha256, step, reason))


def registration_body(lock: Lock) -> dict[str, Any]:
    """What a ledger keeps of a registration; the predecessor shows what was replaced."""
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
