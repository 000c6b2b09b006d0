"""One fact missing, null or empty, wherever the schema lets it be: `derive` raises nothing unforeseen."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from moe_atlas.derivation.derive import derive
from moe_atlas.errors import AtlasError
from moe_atlas.receipt.schema import schema_problems
from moe_atlas.receipt.verify import _ABSURD, verify
from moe_atlas.receipt.write import write_receipt
from moe_atlas.views.view import StrangeReceipt
from tests.receipt import synthetic
from tests.receipt.test_hostile_receipts import places

DERIVED = (
    "predicates",
    "claims",
    "next_steps",
    "warnings",
    "margins",
    "aggregates",
    "evidence",
    "derivation",
)
STRANGE: tuple[Any, ...] = (..., None, [], {})


def facts(kind: str) -> dict[str, Any]:
    made = synthetic.facts(kind, layers=(1,), experts=3)
    made["probe"]["policy"]["resamples"] = 3
    for domain, documents in zip(made["probe"]["domains"], (3, 3, 1, 2), strict=True):
        domain["documents"] = documents
    return made


@cache
def derived(kind: str) -> str:
    made = facts(kind)
    evidence = {"windows": "r.windows.safetensors", "sha256": "ab" * 32, "receipt_sha256": "cd" * 32}
    return json.dumps(derive(made, synthetic.windows(made)) | {"evidence": evidence})


def changed(receipt: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(receipt)
    here: Any = made
    for key in place[:-1]:
        here = here[key]
    if value is ...:
        del here[place[-1]]
    else:
        here[place[-1]] = value
    return made


def of_the_right_form(kind: str, part: str) -> Iterator[dict[str, Any]]:
    """The receipt with one fact changed that the schema lets pass; of a list its first entry."""
    receipt = json.loads(derived(kind))
    for place in places(receipt[part]):
        if not any(isinstance(key, int) and key > 0 for key in place):
            for value in STRANGE:
                made = receipt | {part: changed(receipt[part], place, value)}
                if not schema_problems(made):
                    yield made


@pytest.mark.parametrize("kind", ["audit", "baseline"])
@pytest.mark.parametrize("part", [part for part in json.loads(derived("audit")) if part not in DERIVED])
def test_a_strange_fact_is_derived_or_refused(kind: str, part: str) -> None:
    windows = synthetic.windows(facts(kind))
    for made in of_the_right_form(kind, part):
        try:
            derive(made, windows)
        except (AtlasError, *_ABSURD):
            continue


def test_verify_names_the_fact(tmp_path, monkeypatch) -> None:
    path = tmp_path / "receipt.json"
    made = facts("audit")
    write_receipt(made, synthetic.windows(made), path)

    def strange(*_: Any) -> None:
        raise StrangeReceipt("layers[0].changes.experts", "a change of expert 2", [])

    monkeypatch.setattr("moe_atlas.receipt.verify.derive", strange)
    found = verify(path).mismatches
    problem = "cannot be derived again: expected a change of expert 2, found []"
    assert [(one.path, one.problem) for one in found] == [("layers[0].changes.experts", problem)]


def test_a_layer_that_lists_no_change_of_an_unreached_expert_is_refused() -> None:
    made = facts("audit")
    made["layers"][0]["changes"]["experts"] = []
    with pytest.raises(StrangeReceipt, match=r"^layers\[0\]\.changes\.experts: expected a change of expert"):
        derive(made, synthetic.windows(made))
