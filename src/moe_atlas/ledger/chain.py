"""The hash chain: one JSON object per line, and each line names the digest of the line before it.

A line has exactly one spelling (sorted keys, ASCII, no spaces) and carries a digest of itself, so any changed byte
breaks it. The chain alone cannot show that its tail was cut off. Therefore every receipt carries the `Head` after which
it was written, and the ledger records the receipt in a later entry.
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
    """A line of a ledger.

    Attributes:
        run: name of the run.
        seq: number of the entry, from 0.
        time: time of recording, UTC, ISO 8601.
        kind: ``baseline``, ``audit``, ``resume``, ``registration`` or ``repair`` (a torn tail was set aside).
        body: the recorded facts.
        prev: digest of the entry before, zeros for the first entry.
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
        """Return the ledger's head while this entry is its last."""
        return Head(self.run, self.seq, self.hash)


@dataclass(frozen=True)
class Head:
    """The last entry of a ledger at some moment; a receipt carries it as ``parent.ledger``.

    Attributes:
        run: name of the run.
        seq: number of the last entry, -1 for an empty ledger.
        hash: digest of the last entry, zeros for an empty ledger.
    """

    run: str
    seq: int
    hash: str

    def describe(self) -> dict[str, Any]:
        """Return the head as JSON."""
        return {"run": self.run, "seq": self.seq, "hash": self.hash}


def make_entry(head: Head, kind: str, body: Mapping[str, Any], time: str) -> Entry:
    """Return the entry that follows `head`."""
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
    """Return the entry's line, newline included."""
    fields = {"run": entry.run, "seq": entry.seq, "time": entry.time, "kind": entry.kind, "body": entry.body}
    return _spell({"schema": SCHEMA, **fields, "prev": entry.prev, "hash": entry.hash}) + b"\n"


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_spell(fields)).hexdigest()


def _spell(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.encode("ascii")


def parse_line(line: bytes, where: str) -> Entry:
    """Read a line, without its newline, and check it against its own digest.

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
    """Read a whole ledger: its entries, and the torn tail after the last newline (empty if there is none).

    Raises:
        IntegrityError: E_LEDGER at the first line that was changed or does not follow the line before it.
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
