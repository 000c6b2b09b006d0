"""Gates on parts that no probe token passes: what is found, and what a policy may free by name."""

from __future__ import annotations

from typing import Any

import pytest

from moe_atlas.auditing.unreplayed import FINDINGS
from moe_atlas.probes.settings.policy import ALLOWANCES, UNREPLAYED
from moe_atlas.verdict.predicates import NAMES, derive_predicates
from moe_atlas.views.receipt import ReceiptView
from tests.verdict.receipts import receipt, rewritten, set_path

ATLAS = NAMES[0]


def part(name: str = "mtp", **counts: int) -> dict[str, Any]:
    total = sum(counts.values())
    found = dict.fromkeys(("identical", *FINDINGS), 0) | counts
    named = [{"tensor": f"{name}.x", "is": key} for key in counts if key not in ("identical", "changed")]
    return {"part": name, "tensors": {"base": total, "tuned": total}, "named": named} | found


def judged(
    *rows: dict[str, Any], allow: tuple[str, ...] = (), made: Any = None
) -> tuple[bool | None, list[Any]]:
    made = receipt() if made is None else made
    made["weights"]["unreplayed"] = list(rows)
    made["probe"]["policy"]["allow"] = list(allow)
    atlas = derive_predicates(ReceiptView(made))["predicates"][ATLAS]
    return atlas["passed"], [line["result"] for line in atlas["evidence"] if line["gate"] == "unreplayed"]


@pytest.mark.parametrize("name", UNREPLAYED)
@pytest.mark.parametrize(
    ("counts", "passed", "result", "freed"),
    [
        ({"identical": 9}, True, "pass", "pass"),
        ({"identical": 8, "changed": 1}, True, "pass", "pass"),
        ({"changed": 8, "missing": 1}, None, "undetermined", "not-gated"),
        ({"added": 1}, None, "undetermined", "not-gated"),
        ({"reshaped": 1}, None, "undetermined", "not-gated"),
        ({"replaced": 1}, None, "undetermined", "not-gated"),
        ({"missing": 1, "zeroed": 1}, False, "fail", "not-gated"),
        ({"nonfinite": 1}, False, "fail", "fail"),
    ],
)
def test_a_part_is_gated_and_freed_by_its_own_name(name, counts, passed, result, freed) -> None:
    assert judged(part(name, **counts)) == (passed, [result])
    assert judged(part(name, **counts), allow=(name,)) == (freed != "fail", [freed])
    others = tuple(other for other in ALLOWANCES if other != name)
    assert judged(part(name, **counts), allow=others) == (passed, [result])


@pytest.mark.parametrize("name", ["derived", "idle"])
def test_what_no_server_uses_is_not_gated(name: str) -> None:
    assert judged(part(name, missing=3, zeroed=1)) == (True, [])


def test_one_part_does_not_free_another() -> None:
    rows = (part("mtp", missing=1), part("modalities", missing=1))
    assert judged(*rows, allow=("mtp",)) == (None, ["undetermined", "not-gated"])


@pytest.mark.parametrize("value", [None, ...])
def test_parts_that_were_not_compared_never_pass(value: Any) -> None:
    made = set_path(receipt(), "weights.unreplayed", value)
    assert derive_predicates(ReceiptView(made))["predicates"][ATLAS]["passed"] is None


def test_a_stage_that_allows_a_rewrite_excuses_no_open_part() -> None:
    made = rewritten(receipt("knowledge-expansive"))
    assert judged(part(identical=1), made=made)[0] is True
    assert judged(part(missing=1), made=made)[0] is None
    assert judged(part(zeroed=1), made=made)[0] is False


def test_the_reason_says_how_many_and_what_would_permit_it() -> None:
    made = receipt()
    made["weights"]["unreplayed"] = [part(identical=2, missing=3, replaced=1)]
    line = derive_predicates(ReceiptView(made))["predicates"][ATLAS]["evidence"][0]
    assert line["part"] == "mtp"
    assert line["reason"] == (
        "1 of 6 tensors moved further than a tune moves anything; 3 missing from the tuned checkpoint; "
        "policy.allow: [mtp] permits it"
    )
