"""Every form of a report shows every receipt of the documented form, whatever optional facts it lacks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from moe_atlas.receipt.schema import schema, schema_problems
from moe_atlas.report import terminal
from moe_atlas.report.formats import github
from moe_atlas.report.formats.table import FORMATS
from moe_atlas.report.html import page
from moe_atlas.report.opening import opened
from tests.report import receipts

PATH = Path("receipt.json")
ROUNDS = 10  # thinned receipts of each kind
BY_KIND = ("verdict", "tuned", "pair")  # whether they are needed depends on the kind of the receipt
CASES = {
    "audit": lambda: receipts.receipt(scale=40.0),
    "baseline": lambda: receipts.receipt("baseline"),
    "hostile": receipts.hostile,
}


def resolved(rule: Any) -> Any:
    """A rule of the schema without references; of alternatives, the one that is no null."""
    while "$ref" in rule or "anyOf" in rule:
        if "$ref" in rule:
            rule = schema()["$defs"][rule["$ref"].removeprefix("#/$defs/")]
        else:
            rule = next((one for one in rule["anyOf"] if one != {"type": "null"}), {})
    return rule


def nullable(rule: Any) -> bool:
    """Whether null may stand for it."""
    if "$ref" in rule:
        return nullable(schema()["$defs"][rule["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in rule:
        return any(nullable(one) for one in rule["anyOf"])
    return "null" in rule.get("type", ()) or None in rule.get("enum", ())


def optional(value: Any, rule: Any) -> Iterator[tuple[Any, Any, bool, bool]]:
    """Every fact that may be missing or null: the object, its key, whether it is needed, may be null."""
    rule = resolved(rule)
    if isinstance(value, list):
        for one in value:
            yield from optional(one, rule.get("items", {}))
    elif isinstance(value, dict):
        for key, inner in value.items():
            found = rule.get("properties", {}).get(key) or rule.get("additionalProperties") or {}
            found = found if isinstance(found, dict) else {}
            needed = rule.get("required", ())
            if nullable(found) or key not in needed:
                yield value, key, key in needed, nullable(found)
            yield from optional(inner, found)


def thinned(receipt: dict[str, Any], chance: float, seed: int) -> dict[str, Any]:
    """The receipt with so many of its optional facts nulled or taken out."""
    generator = random.Random(seed)
    for holder, key, needed, may_be_null in list(optional(receipt, schema())):
        if generator.random() >= chance or key in BY_KIND:
            continue
        if may_be_null and (needed or generator.random() < 0.5):
            holder[key] = None
        else:
            holder.pop(key, None)
    assert schema_problems(receipt) == []
    return receipt


def render_all(receipt: dict[str, Any]) -> list[str]:
    view = opened(receipt, PATH)
    stream = StringIO()
    terminal.render(view, Console(file=stream, width=120))
    formats = (*FORMATS.values(), *(report for report, _ in github.REPORTS))
    texts = [report.render(view, PATH) for report in formats]
    return [stream.getvalue(), page.notebook(view, PATH), *(text for text in texts if text)]


@pytest.mark.parametrize("case", CASES)
def test_a_receipt_without_some_optional_facts_can_be_shown(case):
    for seed in range(ROUNDS):
        assert all(render_all(thinned(CASES[case](), 0.02 if seed % 2 else 0.3, seed)))


@pytest.mark.parametrize("case", CASES)
def test_a_receipt_of_nothing_but_what_is_needed_can_be_shown(case):
    assert all(render_all(thinned(CASES[case](), 1.0, 0)))
