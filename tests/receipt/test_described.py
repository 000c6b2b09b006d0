"""The documented form describes every key that real receipts carry, and refuses what is not of that form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_atlas.cli import run
from moe_atlas.receipt.schema import schema, schema_problems
from scripts.oracle import tiny
from tests.support import pairs

OPEN = {"method.model"}  # the resolved specification: every family has its own keys
GOVERNED = ("--probe", "probes.yaml", "--policy-from", "central.yaml", "--run", "sft", "--quiet")


def resolved(rule: dict[str, Any]) -> list[dict[str, Any]]:
    """A rule without references, or its alternatives."""
    while "$ref" in rule:
        rule = schema()["$defs"][rule["$ref"].removeprefix("#/$defs/")]
    return [one for option in rule["anyOf"] for one in resolved(option)] if "anyOf" in rule else [rule]


def undescribed(value: Any, rules: list[dict[str, Any]], path: str = "") -> set[str]:
    """Paths of a receipt that the schema leaves open."""
    if path in OPEN:
        return set()
    found: set[str] = set()
    if isinstance(value, dict):
        for key, inner in value.items():
            known = [rule.get("properties", {}).get(key, rule.get("additionalProperties")) for rule in rules]
            nested = [one for rule in known if isinstance(rule, dict) for one in resolved(rule)]
            where = f"{path}.{key}".lstrip(".")
            found |= undescribed(inner, nested, where) if nested else {where}
    elif isinstance(value, list):
        nested = [one for rule in rules if "items" in rule for one in resolved(rule["items"])]
        for inner in value:
            found |= undescribed(inner, nested, f"{path}[]") if nested else {f"{path}[]"}
    return found


@pytest.fixture(scope="module")
def receipts(tmp_path_factory) -> dict[str, Any]:
    """A run of one baseline after another and an audit, with every option that adds facts."""
    root: Path = tmp_path_factory.mktemp("described")
    base = tiny.save("deepseek_v3", root / "base.ckpt", seed=5)
    pairs.variant(base, root / "hard.ckpt", pairs.jitter(0.5, lambda name: "norm" not in name))
    probes = pairs.probe(root)
    config = yaml.safe_load(probes.read_text())
    central = {"schema": "atlas/policy/v1", "name": "release", "policy": config.pop("policy")}
    (root / "central.yaml").write_text(yaml.safe_dump(central))
    probes.write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        assert run(["register", "probes.yaml", "--policy-from", "central.yaml", "--force"]) == 0
        first = ["baseline", "base.ckpt", *GOVERNED, "--receipt", "first.json"]
        assert run(first) == 0
        again = ["--previous", "first.json", "--reason", "node failure", "--noise-floor", "order"]
        assert run(["baseline", "hard.ckpt", *GOVERNED, "--receipt", "again.json", *again]) == 0
        full = [
            "--yardstick",
            "--noise-floor",
            "order",
            "--chart-maps",
            "2",
            "--baseline",
            "first.json",
            "--force",
        ]
        assert run(["audit", "base.ckpt", "hard.ckpt", *GOVERNED, "--receipt", "hard.json", *full]) == 1
    return {name: json.loads((root / f"{name}.json").read_text()) for name in ("first", "again", "hard")}


@pytest.mark.parametrize("name", ["first", "again", "hard"])
def test_every_key_is_described(receipts, name):
    assert schema_problems(receipts[name]) == []
    assert undescribed(receipts[name], [schema()]) == set()


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("again", "parent.receipt.same_tensors", "yes"),
        ("again", "parent.receipt.classes", [{"class": "router"}]),
        ("again", "parent.ledger.hash", "0"),
        ("again", "noise_floor.layers", [7]),
        ("hard", "checkpoints.tuned.classes", [{"class": "tuned"}]),
        ("hard", "checkpoints.base.path", None),
        ("hard", "probe.lock.policy_from", "release"),
        ("hard", "weights.tensors", ["model.norm"]),
        ("hard", "identity.layers", [{"layer": 1}]),
        ("hard", "method.threads", 0),
        ("hard", "environment.torch", 2),
        ("hard", "timing.phases", {"experts": "long"}),
    ],
)
def test_another_form_is_refused(receipts, name, path, value):
    receipt = json.loads(json.dumps(receipts[name]))
    *way, last = path.split(".")
    place = receipt
    for key in way:
        place = place[key]
    assert place[last] != value
    place[last] = value
    problems = schema_problems(receipt)
    assert problems
    assert all(where.startswith(path) for where, _ in problems)
