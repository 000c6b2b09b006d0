"""A run's history: its checked entries, and the readings of the escalation rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_atlas.errors import Exit, IntegrityError, UsageError
from moe_atlas.ledger.chain import Entry
from moe_atlas.ledger.receipts import Witness, find_witnesses, require_consistent
from moe_atlas.ledger.records import gate_records
from moe_atlas.ledger.store import Ledger, Snapshot
from moe_atlas.lifecycle.episodes import EMPTY
from moe_atlas.lifecycle.escalation import Reading, escalate, exit_code
from moe_atlas.text import not_there, shown


@dataclass(frozen=True)
class History:
    """A checked ledger and its readings.

    Attributes:
        snapshot: the ledger when it was read.
        readings: the reading of each baseline, resume or audit, by the entry's number.
        witnesses: number of receipts that confirm the ledger.
    """

    snapshot: Snapshot
    readings: dict[int, Reading]
    witnesses: int

    @property
    def last(self) -> Reading | None:
        """Return the latest reading, None if there is none."""
        return next(reversed(self.readings.values()), None)

    @property
    def qualified(self) -> list[str]:
        """Return what restricts the meaning of the latest reading's verdict, by code."""
        last = next(reversed(self.readings), None)
        by_number = {entry.seq: entry for entry in self.snapshot.entries}
        return [] if last is None else qualified(by_number[last])

    @property
    def exit_code(self) -> Exit:
        """Return the exit code for a pipeline."""
        return exit_code(list(self.readings.values()))

    def describe(self) -> dict[str, Any]:
        """Return the history as JSON."""
        last = self.last
        return {
            "run": self.snapshot.run,
            "head": self.snapshot.head.describe(),
            "torn_bytes": len(self.snapshot.torn),
            "receipts_checked": self.witnesses,
            "state": last.state if last else EMPTY,
            "colour": last.colour if last else None,
            "qualified": self.qualified,
            "action": last.action if last else "record a baseline or an audit of this run",
            "intervention": last.intervention if last else None,
            "not_counted": last.not_counted if last else None,
            "exit_code": int(self.exit_code),
            "entries": [self._entry(entry) for entry in self.snapshot.entries],
        }

    def _entry(self, entry: Entry) -> dict[str, Any]:
        reading = self.readings.get(entry.seq)
        facts: dict[str, Any] = {
            "seq": entry.seq,
            "time": entry.time,
            "kind": entry.kind,
            "body": dict(entry.body),
        }
        return facts | {"reading": None if reading is None else asdict(reading), "notes": self.notes(entry)}

    def notes(self, entry: Entry) -> list[str]:
        """Return the notes that every report of the run prints beside an entry."""
        body, reading = entry.body, self.readings.get(entry.seq)
        return [
            *(_of_reading(reading) if reading else []),
            *_of_event(body),
            *_policy_change(self.snapshot.entries, entry),
        ]


def qualified(entry: Entry) -> list[str]:
    """Return what restricts the meaning of an entry's verdict; entries of earlier versions say nothing of it."""
    return [str(code) for code in entry.body.get("qualified") or ()]


def _of_reading(reading: Reading) -> list[str]:
    return [
        *([reading.not_counted] if reading.not_counted else []),
        *(["rebound"] if reading.rebound else []),
        *(["margin trap: margins rise while occupancy is degraded"] if reading.margin_trap else []),
        *([reading.decline_trend] if reading.decline_trend else []),
    ]


def _of_event(body: Mapping[str, Any]) -> list[str]:
    predecessor = (body.get("predecessor") or {}).get("sha256")
    return [
        *([f"after {body['reason']}"] if body.get("reason") else []),
        *([f"failed: {', '.join(body['failed'])}"] if body.get("failed") else []),
        *([f"lock {str(body['lock_sha256'])[:12]}"] if "predecessor" in body else []),
        *([f"replaces registration {str(predecessor)[:12]}"] if predecessor else []),
        *([f"{body['torn_bytes']} torn bytes set aside"] if "torn_bytes" in body else []),
    ]


def _policy_change(entries: Sequence[Entry], entry: Entry) -> list[str]:
    """Return a note if the policy of an entry's probe set differs from the policy registered before it."""
    now, name = entry.body.get("lock_policy_sha256"), entry.body.get("probe")
    before = (entry.body.get("predecessor") or {}).get("policy_sha256")
    earlier = [other.body for other in entries[: entry.seq] if other.body.get("probe") == name]
    known = [found for body in earlier if (found := body.get("lock_policy_sha256"))]
    before = known[-1] if known else before
    if now is None or before in (None, now):
        return []
    return [f"policy changed: {str(before)[:12]} → {str(now)[:12]}"]


def read_history(ledger: Ledger, receipts: Iterable[Path] = ()) -> History:
    """Read a run's ledger, check it against its receipts, and apply the escalation rule.

    Args:
        ledger: the run's ledger.
        receipts: receipts, or folders of receipts, besides those at their recorded places.

    Raises:
        UsageError: E_RUN if there is no such run, or if a file among `receipts` is no receipt of the run; E_NO_FILE.
        IntegrityError: E_LEDGER (a line was changed), E_LEDGER_CUT (receipts contradict the ledger).
    """
    snapshot = ledger.read()
    receipts = list(receipts)
    witnesses = find_witnesses(snapshot.entries, ledger.run, receipts)
    _require_witnesses(receipts, witnesses, ledger.run)
    require_consistent(snapshot.entries, witnesses, shown(str(ledger.path)))
    gates = [entry for entry in snapshot.entries if entry.kind in ("baseline", "resume", "audit")]
    readings = escalate(gate_records(snapshot.entries))
    by_entry = {entry.seq: reading for entry, reading in zip(gates, readings, strict=True)}
    return History(snapshot, by_entry, len(witnesses))


def _require_witnesses(receipts: Iterable[Path], witnesses: Iterable[Witness], run: str) -> None:
    """Refuse a named path that is no receipt of the run: a mistyped path would be a check that never fails."""
    known = {witness.path for witness in witnesses}
    for place in receipts:
        if not place.exists():
            raise UsageError(
                "E_NO_FILE", shown(str(place)), not_there(place, "there is no such file or folder")
            )
        if not place.is_dir() and place.resolve() not in known:
            problem = f"is no receipt of run {shown(run)}"
            raise UsageError(
                "E_RUN", shown(str(place)), problem, "give its receipts, or folders that hold them"
            )


def require_settled(history: History, where: str) -> None:
    """Refuse to gate on a ledger whose last append was cut short.

    Raises:
        IntegrityError: E_LEDGER_TORN.
    """
    if history.snapshot.torn:
        problem = f"its last append was cut short ({len(history.snapshot.torn)} bytes) and never acknowledged"
        hint = "run the interrupted audit or baseline again; its append sets the torn bytes aside"
        raise IntegrityError("E_LEDGER_TORN", where, problem, hint)
