"""Find the predecessor of a new registration if the old lock is gone.

Otherwise a user could remove a lock, register again, and present a first registration. A run's ledger and the receipts
beside a probe file name the earlier locks.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe_atlas.errors import AtlasError, UsageError
from moe_atlas.ledger.chain import Entry
from moe_atlas.ledger.store import DEFAULT_RUNS, Ledger
from moe_atlas.probes.lock import lock_path
from moe_atlas.system.bounded_read import Unreadable, read_regular
from moe_atlas.system.limits import MAX_RECEIPT_BYTES
from moe_atlas.text import shown

KEYS = ("sha256", "registered_at", "policy_sha256")
Registration = dict[str, str]


class Predecessors:
    """Searches for earlier registrations of a probe file, by the probe set's name.

    Args:
        probes: the probe file.
        runs: the folder that holds the runs; the default folder beside the probe file is searched as well.
        run: the run whose ledger records the new registration.

    Attributes:
        searched: whether a search took place.
        where: the ledger or receipt that names the registration found.
        unread: ledgers that do not verify and so were not searched.
    """

    def __init__(self, probes: Path, runs: Path = DEFAULT_RUNS, run: str | None = None) -> None:
        self._lock, self._runs, self._run = lock_path(probes).resolve(), runs, run
        self.searched = False
        self.where: str | None = None
        self.unread: list[str] = []

    def __call__(self, name: str) -> Registration | None:
        """Return the latest earlier registration of a probe set of this name, None if none is known.

        Raises:
            IntegrityError: E_LEDGER if the ledger of the named run was changed.
        """
        self.searched = True
        found = [*self._in_ledgers(name), *self._in_receipts(name)]
        if not found:
            return None
        self.where, latest = max(found, key=lambda one: one[1]["registered_at"])
        return latest

    def _in_ledgers(self, name: str) -> Iterator[tuple[str, Registration]]:
        for ledger in self._ledgers():
            for entry in self._entries(ledger):
                body = entry.body
                ours = body.get("probe") == name or body.get("lock") == str(self._lock)
                known = _registration(
                    body.get("lock_sha256"), body.get("registered_at"), body.get("lock_policy_sha256")
                )
                if ours and known:
                    yield f"the ledger of run {shown(ledger.run)}", known

    def _ledgers(self) -> Iterator[Ledger]:
        folders = {runs.resolve() for runs in (self._runs, self._lock.parent / DEFAULT_RUNS)}
        paths = sorted(path for runs in folders for path in runs.glob("*/ledger.jsonl"))
        for path in paths:
            with contextlib.suppress(UsageError):  # a folder whose name is no run's name
                yield Ledger(path.parent.name, path.parent.parent)

    def _entries(self, ledger: Ledger) -> tuple[Entry, ...]:
        try:
            return ledger.read().entries
        except AtlasError:
            if ledger.run == self._run:
                raise
            self.unread.append(shown(str(ledger.path)))
            return ()

    def _in_receipts(self, name: str) -> Iterator[tuple[str, Registration]]:
        for path in sorted(self._lock.parent.glob("*.json")):
            probe = _probe_of(path)
            lock = probe.get("lock")
            known = _registration(*map(lock.get, KEYS)) if isinstance(lock, Mapping) else None
            if known and probe.get("name") == name:
                yield f"receipt {shown(path.name)}", known


def _registration(*values: Any) -> Registration | None:
    """Return a registration if all of its values are known, else None."""
    return dict(zip(KEYS, values, strict=True)) if all(isinstance(value, str) for value in values) else None


def _probe_of(path: Path) -> Mapping[str, Any]:
    """Return a receipt's entry on its probe set; an empty mapping if the file is no receipt."""
    try:
        receipt = json.loads(read_regular(path, MAX_RECEIPT_BYTES))
    except (Unreadable, ValueError, RecursionError):
        return {}
    probe = receipt.get("probe") if isinstance(receipt, dict) else None
    return probe if isinstance(probe, Mapping) else {}
