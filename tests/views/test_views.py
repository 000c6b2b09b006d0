"""The views say what receipt.schema.json says: same places, same types; a strange fact is refused by its path."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

import moe_atlas.views
from moe_atlas.channels import CHANNELS
from moe_atlas.receipt.schema import schema
from moe_atlas.report.yardstick import TIMES
from moe_atlas.views.measured import Interval, LayerView, PairView
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.view import Fact, StrangeReceipt, View
from tests.report import receipts

for module in pkgutil.iter_modules(moe_atlas.views.__path__):
    import_module(f"moe_atlas.views.{module.name}")

KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}
WRONG: dict[str, Any] = {"string": 7, "integer": 0.5, "number": "7", "boolean": 1, "object": [], "array": {}}


def facts(view: type[View]) -> dict[str, Fact[Any]]:
    return {name: fact for of in view.__mro__ for name, fact in vars(of).items() if isinstance(fact, Fact)}


def alternatives(rule: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A rule of the schema without references, once for each of its alternatives."""
    if "$ref" in rule:
        yield from alternatives(schema()["$defs"][rule["$ref"].removeprefix("#/$defs/")])
    for one in rule.get("anyOf", ()):
        yield from alternatives(one)
    if "$ref" not in rule and "anyOf" not in rule:
        yield rule


def kinds(rule: dict[str, Any]) -> set[str]:
    """The JSON types that a rule allows."""
    if "type" in rule:
        return {rule["type"]} if isinstance(rule["type"], str) else set(rule["type"])
    values = rule.get("enum", [rule.get("const")])
    return {"null" if value is None else KINDS[type(value)] for value in values}


def places(view: type[View], rule: dict[str, Any], path: str = "") -> Iterator[tuple[str, Fact[Any], Any]]:
    """Every fact of a view and of the views below it, with the alternatives that the schema has at its place."""
    for fact in facts(view).values():
        if fact.key == TIMES:  # a report adds it to a receipt that it shows; no receipt stores it
            continue
        where = f"{path}.{fact.key}".lstrip(".")
        found = rule.get("properties", {}).get(fact.key)
        there = [] if found is None else list(alternatives(found))
        yield where, fact, (there, fact.key in rule.get("required", ()))
        for one in there if fact.of else ():
            if "items" in one:
                inner = [one["items"]]
            elif fact.of in facts_of_named():
                inner = list(one.get("properties", {}).values()) or [one["additionalProperties"]]
            else:
                inner = [one] if "object" in kinds(one) else []
            for rest in inner:
                yield from places(fact.of, next(r for r in alternatives(rest) if "object" in kinds(r)), where)


def facts_of_named() -> set[Any]:
    """The views that stand under names of their own."""
    from moe_atlas.views.judged import PredicateView
    from moe_atlas.views.registered import CheckpointFacts
    from moe_atlas.views.weights import WeightClass

    return {PredicateView, CheckpointFacts, WeightClass}


ALL = list(places(ReceiptView, schema()))


def test_every_view_is_reached_from_a_receipt():
    reached = {fact.of for _, fact, _ in ALL} | {ReceiptView}
    below = {one for made in View.__subclasses__() for one in (made, *made.__subclasses__())}
    assert {one for one in below if facts(one) and one.__module__.startswith("moe_atlas.")} <= reached


@pytest.mark.parametrize(("path", "fact", "rule"), ALL, ids=[path for path, _, _ in ALL])
def test_a_fact_stands_where_the_schema_has_it_in_its_type(path: str, fact: Fact[Any], rule: Any):
    there, required = rule
    assert there, f"{path} is not in the schema"
    allowed = set().union(*(kinds(one) for one in there))
    assert allowed - {"null"} == {fact.kind}
    if not fact.optional:
        assert required
        assert "null" not in allowed


def test_the_pair_has_every_channel():
    assert {channel.key for channel in CHANNELS} <= set(schema()["$defs"]["pair"]["properties"])
    pair = ReceiptView(receipts.receipt()).layers[0].pair
    assert pair is not None
    found = [pair.interval(channel.key) for channel in CHANNELS if channel.kind != "format"]
    assert all(one is not None and one.documents is not None for one in found)


def read_all(view: View) -> int:
    """Read every fact of a view and of those below it, and count the facts."""
    count = 0
    for name in facts(type(view)):
        value = getattr(view, name)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
        count += 1 + sum(read_all(one) for one in inner if isinstance(one, View))
    return count


@pytest.mark.parametrize("kind", ["audit", "baseline"])
def test_every_fact_of_a_receipt_can_be_read(kind: str):
    assert read_all(ReceiptView(json.loads(json.dumps(receipts.receipt(kind))))) > 250


@pytest.mark.parametrize(("path", "fact", "rule"), ALL, ids=[path for path, _, _ in ALL])
def test_a_fact_of_another_type_is_refused_by_its_path(path: str, fact: Fact[Any], rule: Any):
    view = type("One", (View,), {"fact": Fact(fact.kind, fact._read, fact.key, of=fact.of)})
    for strange in (WRONG[fact.kind], None):
        with pytest.raises(StrangeReceipt, match=rf"^somewhere\.{fact.key}: expected .*, found "):
            _ = view({fact.key: strange}, "somewhere").fact


def test_a_list_names_the_entry_and_an_object_its_key():
    with pytest.raises(StrangeReceipt, match=r"^layers\[1\]\.layer: expected an integer, found 'x'$"):
        _ = ReceiptView({"layers": [{"layer": 0}, {"layer": "x"}]}).layers[1].layer
    with pytest.raises(StrangeReceipt, match=r"^predicates\.p\.outcome: expected a string, found nothing$"):
        _ = ReceiptView({"predicates": {"p": {}}}).predicates["p"].outcome
    with pytest.raises(StrangeReceipt, match=r"^layers\[0\]: expected an object, found 7$"):
        _ = ReceiptView({"layers": [7]}).layers
    with pytest.raises(StrangeReceipt, match=r"^receipt: expected an object, found \[\]$"):
        ReceiptView([])  # type: ignore[arg-type]


def test_a_bool_is_no_number_and_a_number_stays_as_it_is_stored():
    with pytest.raises(StrangeReceipt):
        _ = Interval({"estimate": True}).estimate
    assert type(Interval({"estimate": 0}).estimate) is int


def test_a_missing_interval_is_none_and_a_strange_one_is_refused():
    assert LayerView({"pair": None}).channel("boundary_drift") is None
    assert PairView({"boundary_drift": None}).interval("boundary_drift") is None
    with pytest.raises(StrangeReceipt, match="boundary_drift: expected an object"):
        PairView({"boundary_drift": 0.5}).interval("boundary_drift")


def test_a_tuple_counts_as_a_list():
    assert ReceiptView({"layers": ({"layer": 3},)}).layers[0].layer == 3


def test_nothing_can_be_set():
    with pytest.raises(AttributeError):
        Interval({}).facts = {}  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Interval({}).estimate = 1.0  # type: ignore[misc]
