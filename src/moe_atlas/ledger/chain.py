"""The hash chain: one JSON object a line, each naming the digest of the one before.

A line has exactly one spelling (sorted keys, ASCII, no spaces) and carries a digest of itself, so any byte
that differs breaks it. What the chain alone cannot show is that its tail was cut off: for that every receipt
carries the `Head` it was written after, and the entry that records it follows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_atlas.errors import IntegrityError

SCHEMA = "atlas/ledger/v1"
GENESIS = "0" * 64
MAX_LINE_BYTES = 1 << 20
KINDS = ("baseline", "audit", "resume", "registration", "repair")
_KEYS = frozenset({"schema", "run", "seq", "time", "kind", "body", "prev", "hash"})


@dataclass(frozen=True)
class Entry:
    """One line of a ledger.

    Attributes:
        run: name of the run.
        seq: number, from 0.
        time: when it was recorded, UTC, ISO 8601.
        kind: ``baseline``, ``audit``, ``resume``, ``registration`` or ``repair`` (a torn tail was set aside).
        body: what happened.
        prev: digest of the entry before, zeros for the first.
        hash: digest of this entry.
    """

    run: str
    seq: int
    time: str
    kind: str
    body: Mapping[str, Any]
    prev: str
    hash: str

    @property
    def head(self) -> Head:
        """The ledger's head once this entry is its last."""
        return Head(self.run, self.seq, self.hash)


@dataclass(frozen=True)
class Head:
    """The last entry of a ledger at some moment; a receipt carries it as ``parent.ledger``.

    Attributes:
        run: name of the run.
        seq: number of the last entry, -1 for an empty ledger.
        hash: its digest, zeros for an empty ledger.
    """

    run: str
    seq: int
    hash: str

    def describe(self) -> dict[str, Any]:
        """The head as JSON."""
        return {"run": self.run, "seq": self.seq, "hash": self.hash}


def make_entry(head: Head, kind: str, body: Mapping[str, Any], time: str) -> Entry:
    """The entry that follows `head`."""
    fields = {
        "run": head.run,
        "seq": head.seq + 1,
        "time": time,
        "kind": kind,
        "body": body,
        "prev": head.hash,
    }
    return Entry(head.run, head.seq + 1, time, kind, body, head.hash, _digest({"schema": SCHEMA, **fields}))


def render(entry: Entry) -> bytes:
    """The entry's line, newline included."""
    fields = {"run": entry.run, "seq": entry.seq, "time": entry.time, "kind": entry.kind, "body": entry.body}
    return _spell({"schema": SCHEMA, **fields, "prev": entry.prev, "hash": entry.hash}) + b"\n"


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_spell(fields)).hexdigest()


def _spell(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.encode("ascii")


def parse_line(line: bytes, where: str) -> Entry:
    """Read one line, without its newline, and check it against its own digest.

    Raises:
        IntegrityError: E_LEDGER.
    """
    try:
        value = json.loads(line)
        whole = isinstance(value, dict) and set(value) == _KEYS and _spell(value) == line
    except (ValueError, RecursionError):
        whole = False
    if not whole or value["schema"] != SCHEMA or not _typed(value):
        raise IntegrityError("E_LEDGER", where, "is not an entry as it was written", _RESTORE)
    digest = _digest({key: item for key, item in value.items() if key != "hash"})
    if digest != value["hash"]:
        raise IntegrityError("E_LEDGER", where, "was changed after it was written", _RESTORE)
    del value["schema"]
    return Entry(**value)


_RESTORE = "restore the ledger from a copy; nothing after this point can be trusted"


def _typed(value: dict[str, Any]) -> bool:
    texts = all(isinstance(value[key], str) for key in ("run", "time", "kind", "prev", "hash"))
    return texts and type(value["seq"]) is int and isinstance(value["body"], dict) and value["kind"] in KINDS


def parse_chain(raw: bytes, run: str, where: str) -> tuple[tuple[Entry, ...], bytes]:
    """Read a whole ledger: its entries, and the torn tail behind the last newline (empty if none).

    Raises:
        IntegrityError: E_LEDGER at the first line that is not what was written, or does not follow the one
            before.
    """
    *lines, torn = raw.split(b"\n")
    head = Head(run, -1, GENESIS)
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        entry = parse_line(line, f"{where}:{number}")
        if (entry.run, entry.seq, entry.prev) != (head.run, head.seq + 1, head.hash):
            problem = "does not follow the entry before it: lines are missing, repeated or out of order"
            raise IntegrityError("E_LEDGER", f"{where}:{number}", problem, _RESTORE)
        entries.append(entry)
        head = entry.head
    return tuple(entries), torn
