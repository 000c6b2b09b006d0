"""What was derived once is derived alike for as long as the version of the rules is the same; others are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from moe_atlas.cli import run
from moe_atlas.derivation.derive import DERIVATION
from moe_atlas.errors import Exit, InputRefused
from moe_atlas.receipt.canonical import encode_receipt, receipt_digest
from moe_atlas.receipt.verify import intact_receipt, verify
from moe_atlas.receipt.write import write_receipt
from tests.receipt import synthetic
from tests.support import golden

KINDS = ("audit", "baseline")


def kept(kind: str) -> Path:
    return golden.FOLDER / f"derivation-{DERIVATION}-{kind}.json"


def made(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    facts = synthetic.facts(kind, layers=(1, 2), experts=4)
    facts["probe"]["policy"]["resamples"] = 60
    for domain, documents in zip(facts["probe"]["domains"], (3, 3, 1, 2), strict=True):
        domain["documents"] = documents
    return facts, synthetic.windows(facts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_receipt_written_once_verifies(kind: str) -> None:
    """A kept receipt is never written anew: where this fails, the rules changed and their version must."""
    if os.environ.get(golden.UPDATE) and not kept(kind).exists():
        write_receipt(*made(kind), kept(kind))
    assert verify(kept(kind)).mismatches == [], "raise DERIVATION, then make goldens"


@pytest.mark.parametrize("version", range(2, DERIVATION))
@pytest.mark.parametrize("kind", KINDS)
def test_a_receipt_of_earlier_rules_is_refused_by_name(kind: str, version: int) -> None:
    with pytest.raises(InputRefused, match=f"was derived by derivation {version}, this atlas derives by"):
        verify(golden.FOLDER / f"derivation-{version}-{kind}.json")


def other(path: Path, version: Any, *, seal: bool = True) -> Path:
    """The receipt as a version of other rules would have written it."""
    receipt = json.loads(path.read_bytes())
    receipt |= {"derivation": version, "later_key": {}, "environment": {"moe_atlas": "9.9.0"}}
    if version is None:
        del receipt["derivation"]
    if seal:
        receipt["evidence"]["receipt_sha256"] = receipt_digest(receipt)
    path.write_bytes(encode_receipt(receipt))
    return path


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "receipt.json"
    write_receipt(*made("audit"), path)
    assert json.loads(path.read_bytes())["derivation"] == DERIVATION
    return path


def test_other_rules_are_one_refusal_and_no_list(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other(written, DERIVATION + 1)
    assert run(["verify", str(written)]) == Exit.REFUSED
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        f"atlas: E_DERIVATION {written}: its verdict was derived by derivation {DERIVATION + 1}, this atlas derives "
        f"by {DERIVATION}; verify it with moe-atlas 9.9.0, or audit the pair again\n"
    )
    for use in (verify, intact_receipt):
        with pytest.raises(InputRefused, match="E_DERIVATION"):
            use(written)


@pytest.mark.parametrize("version", [None, 0, -1, "1", 1.5, [], {}])
def test_no_version_or_a_strange_one_is_refused(written: Path, version: Any) -> None:
    with pytest.raises(InputRefused, match="E_DERIVATION"):
        verify(other(written, version))


def test_a_version_that_was_edited_is_damage_and_no_other_version(written: Path) -> None:
    report = verify(other(written, DERIVATION + 1, seal=False))
    assert "derivation" in [mismatch.path for mismatch in report.mismatches]


@pytest.mark.parametrize("version", [float(DERIVATION)])
def test_what_only_equals_the_version_is_none(written: Path, version: Any) -> None:
    assert verify(other(written, version)).mismatches
