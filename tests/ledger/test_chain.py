from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from moe_atlas.errors import Exit, IntegrityError
from moe_atlas.ledger import Ledger
from moe_atlas.ledger.chain import GENESIS, Head, make_entry, parse_chain, parse_line, render


def chain(count: int, run: str = "r") -> list[bytes]:
    head = Head(run, -1, GENESIS)
    lines = []
    for n in range(count):
        entry = make_entry(head, "audit", {"step": n, "note": "ü\u202e"}, "2026-01-01T00:00:00+00:00")
        lines.append(render(entry))
        head = entry.head
    return lines


def test_a_line_is_what_the_format_says() -> None:
    first, second = (json.loads(line) for line in chain(2))
    assert first["prev"] == "0" * 64
    assert second["prev"] == first["hash"]
    digest = first.pop("hash")
    text = json.dumps(first, sort_keys=True, separators=(",", ":"))
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert first["schema"] == "atlas/ledger/v1"
    assert (first["run"], first["seq"], first["kind"]) == ("r", 0, "audit")


def test_round_trip() -> None:
    entries, torn = parse_chain(b"".join(chain(4)), "r", "f")
    assert [entry.seq for entry in entries] == [0, 1, 2, 3]
    assert b"".join(render(entry) for entry in entries) == b"".join(chain(4))
    assert torn == b""
    assert parse_chain(b"", "r", "f") == ((), b"")


@pytest.mark.parametrize("masks", [1, pytest.param(255, marks=pytest.mark.slow)])
def test_every_single_byte_change_is_noticed(masks: int) -> None:
    """One other value of every byte here, all 255 in the slow run."""
    raw = b"".join(chain(3))
    generator = np.random.default_rng(1)
    changes = [(at, mask) for at in range(len(raw)) for mask in 1 + generator.permutation(255)[:masks]]
    print(f"{len(changes)} changed bytes of a ledger of {len(raw)}")
    for position, mask in changes:
        damaged = bytearray(raw)
        damaged[position] ^= int(mask)
        try:
            _, torn = parse_chain(bytes(damaged), "r", "f")
        except IntegrityError as error:
            noticed = error.code == "E_LEDGER"
        else:
            noticed = bool(torn)  # the last newline: an append that was never acknowledged
            assert position == len(raw) - 1
        assert noticed, position


@pytest.mark.parametrize(
    "order",
    [[1, 2], [0, 2], [0, 1, 1, 2], [0, 2, 1], [1, 0], [0, 0]],
)
def test_missing_repeated_and_swapped_lines_are_noticed(order: list[int]) -> None:
    lines = chain(3)
    with pytest.raises(IntegrityError) as caught:
        parse_chain(b"".join(lines[n] for n in order), "r", "f")
    assert caught.value.exit_code == Exit.CHANGED
    assert "does not follow" in caught.value.problem


def test_the_line_is_named() -> None:
    lines = chain(5)
    lines[3] = lines[3].replace(b'"step":3', b'"step":4')
    with pytest.raises(IntegrityError) as caught:
        parse_chain(b"".join(lines), "r", "ledger")
    assert caught.value.where == "ledger:4"


def test_a_ledger_of_another_run_is_refused() -> None:
    with pytest.raises(IntegrityError):
        parse_chain(b"".join(chain(2, "other")), "r", "f")


def test_a_torn_tail_is_told_apart() -> None:
    lines = chain(3)
    for cut in range(1, len(lines[2])):
        entries, torn = parse_chain(b"".join(lines)[:-cut], "r", "f")
        assert len(entries) == 2
        assert torn == lines[2][:-cut]


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b"3", b"null", b"\xff", b"[" * 100_000, b'{"hash":NaN}', b"\x00" * 40],
)
def test_what_is_no_entry(line: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse_line(line, "f:1")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seq", True),
        ("seq", "0"),
        ("body", []),
        ("kind", "promotion"),
        ("kind", None),
        ("time", 3),
        ("schema", "v2"),
    ],
)
def test_a_resealed_line_of_another_form_is_refused(key: str, value: object) -> None:
    fields = json.loads(chain(1)[0])
    del fields["hash"]
    fields[key] = value
    spelled = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    fields["hash"] = hashlib.sha256(spelled).hexdigest()
    with pytest.raises(IntegrityError):
        parse_line(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode(), "f")


def test_a_rewritten_chain_has_another_head(tmp_path: Path) -> None:
    """An attacker can rebuild a chain; the head in the receipts is what gives it away."""
    ledger = Ledger("r", tmp_path)
    for n in range(3):
        ledger.append("audit", {"n": n})
    before = ledger.head()
    ledger.path.unlink()
    for n in range(3):
        ledger.append("audit", {"n": n if n else 9})
    assert ledger.head().seq == before.seq
    assert ledger.head().hash != before.hash
