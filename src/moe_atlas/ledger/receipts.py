"""Check a ledger against its receipts, and the receipts against the ledger.

A chain cannot show that its tail was cut. But a receipt carries the head after which it was written, and a later entry
records the receipt. If the ledger does not know a receipt's head or digest, lines are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_atlas.errors import IntegrityError
from moe_atlas.ledger.chain import GENESIS, Entry
from moe_atlas.system.bounded_read import Unreadable, read_regular
from moe_atlas.system.limits import MAX_RECEIPT_BYTES
from moe_atlas.text import shown


@dataclass(frozen=True)
class Witness:
    """A receipt of a run, which shows how far the run's ledger reached.

    Attributes:
        path: the receipt's file.
        sha256: digest of the file's bytes.
        head: the ledger's head after which the receipt was written.
    """

    path: Path
    sha256: str
    head: Mapping[str, Any]


def ledger_head(receipt: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the head that a receipt carries under ``parent.ledger``, None if it belongs to no run."""
    parent = receipt.get("parent")
    head = parent.get("ledger") if isinstance(parent, Mapping) else None
    return head if isinstance(head, Mapping) else None


def find_witnesses(entries: Sequence[Entry], run: str, more: Iterable[Path] = ()) -> list[Witness]:
    """Find the receipts of `run` in the folders of its recorded receipts, and in `more` (files or folders).

    Files that are no receipts of this run are ignored: they say nothing about its ledger.
    """
    folders = {Path(str(entry.body["receipt"])).parent for entry in entries if "receipt" in entry.body}
    candidates = {path.resolve() for place in (*folders, *more) for path in _files(place)}
    return [witness for path in sorted(candidates) if (witness := _witness(path, run)) is not None]


def _files(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from place.glob("*.json")
    elif place.is_file():
        yield place


def _witness(path: Path, run: str) -> Witness | None:
    try:
        raw = read_regular(path, MAX_RECEIPT_BYTES)
        receipt = json.loads(raw)
    except (Unreadable, ValueError, RecursionError):
        return None
    head = ledger_head(receipt) if isinstance(receipt, dict) else None
    if head is None or head.get("run") != run:
        return None
    return Witness(path, hashlib.sha256(raw).hexdigest(), head)


def _sha256(path: Path) -> str | None:
    """Return the digest of a file's bytes, None if the file cannot be a receipt."""
    try:
        return hashlib.sha256(read_regular(path, MAX_RECEIPT_BYTES)).hexdigest()
    except Unreadable:
        return None


def check_witnesses(entries: Sequence[Entry], witnesses: Iterable[Witness]) -> list[str]:
    """Return every contradiction between receipts and ledger, empty if there is none."""
    hashes = [GENESIS, *(entry.hash for entry in entries)]
    recorded = {str(entry.body.get("receipt_sha256")): entry.seq for entry in entries}
    problems: list[str] = []
    for witness in witnesses:
        name, seq = shown(str(witness.path)), witness.head.get("seq")
        known = (
            isinstance(seq, int) and -1 <= seq < len(entries) and hashes[seq + 1] == witness.head.get("hash")
        )
        if not known:
            problems.append(f"{name} was written after entry {seq}, which the ledger does not have")
        elif witness.sha256 not in recorded:
            problems.append(
                f"{name} is not recorded: its entry was cut off, or it was changed, or never recorded"
            )
        elif isinstance(seq, int) and recorded[witness.sha256] <= seq:
            problems.append(f"{name} is recorded before the entry it was written after")
    return problems


def check_recorded(entries: Sequence[Entry]) -> list[str]:
    """Return a problem for each recorded receipt whose file has changed; a missing file is no problem."""
    problems = []
    for entry in entries:
        path = Path(str(entry.body.get("receipt", "")))
        if "receipt" not in entry.body or not path.is_file():
            continue
        if _sha256(path) != entry.body.get("receipt_sha256"):
            replaced = any(later.body.get("receipt") == str(path) for later in entries[entry.seq + 1 :])
            if not replaced:
                problems.append(f"{shown(str(path))} is not the receipt that entry {entry.seq} recorded")
    return problems


def require_consistent(entries: Sequence[Entry], witnesses: Iterable[Witness], where: str) -> None:
    """Refuse a ledger that its receipts contradict.

    Raises:
        IntegrityError: E_LEDGER_CUT with every contradiction.
    """
    problems = [*check_recorded(entries), *check_witnesses(entries, witnesses)]
    if problems:
        hint = "restore the ledger from a copy, or move receipts that do not belong to this run elsewhere"
        raise IntegrityError("E_LEDGER_CUT", where, "; ".join(dict.fromkeys(problems)), hint)
