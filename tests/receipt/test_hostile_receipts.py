"""Receipts that somebody made up: any JSON anywhere, any bytes at all, resealed or not; a mismatch, never a crash."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_atlas.errors import AtlasError
from moe_atlas.receipt.canonical import encode_receipt, receipt_digest
from moe_atlas.receipt.files import window_path
from moe_atlas.receipt.verify import verify
from moe_atlas.receipt.write import write_receipt
from tests.receipt import synthetic

# Facts that nothing is derived from: the receipt's own digest guards them, and a signature where there is one.
FREE = {
    "method",
    "environment",
    "timing",
    "controls",
    "parent",
    "noise_floor",
    "reference",
    "attempts",
    "checkpoints",
}
FREE |= {"identity", "weights", "vocabulary", "probe", "layers"}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


APART = ("evidence", "derivation")  # the digest itself, and other rules, which are refused by name


@pytest.fixture(scope="module")
def receipt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    facts = synthetic.facts(layers=(1, 2), experts=4)
    facts["probe"]["policy"]["resamples"] = 60
    for domain, documents in zip(facts["probe"]["domains"], (3, 3, 1, 2), strict=True):
        domain["documents"] = documents
    path = tmp_path_factory.mktemp("hostile") / "receipt.json"
    write_receipt(facts, synthetic.windows(facts), path)
    return path


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and index below a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((*path, key), *places(inner, (*path, key)))]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 1 << 30), value=JSON, drop=st.booleans())
def test_any_json_anywhere_resealed(receipt: Path, seed: int, value: Any, drop: bool) -> None:
    original = json.loads(receipt.read_bytes())
    place = random.Random(seed).choice([one for one in places(original) if one[0] not in APART])
    changed = copy.deepcopy(original)
    here: Any = changed
    for key in place[:-1]:
        here = here[key]
    if drop:
        del here[place[-1]]
    else:
        here[place[-1]] = value
    forged = receipt.with_name("forged.json")
    try:
        changed["evidence"]["receipt_sha256"] = receipt_digest(changed)
        forged.write_bytes(encode_receipt(changed))
    except UnicodeEncodeError:
        return
    report = verify(forged)
    if changed != original and place[0] not in FREE:
        assert report.mismatches, place
    if report.receipt is not None and not report.mismatches:
        assert report.verdict == original["verdict"], place


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(receipt: Path, raw: bytes) -> None:
    forged = receipt.with_name("forged.json")
    forged.write_bytes(raw)
    assert verify(forged).mismatches


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 20_000), insert=st.binary(max_size=9))
def test_any_splice_of_either_file(receipt: Path, cut: int, insert: bytes) -> None:
    for target in (receipt, window_path(receipt)):
        raw = target.read_bytes()
        at = cut % len(raw)
        spliced = raw[:at] + insert + raw[at + (cut % 3) :]
        if spliced == raw:
            continue
        target.write_bytes(spliced)
        try:
            assert verify(receipt).mismatches
        except AtlasError as error:
            pytest.fail(str(error))
        finally:
            target.write_bytes(raw)
