"""The noise floor: when it is measured, what it says, and that a baseline's own one is enough to ask for it."""

from __future__ import annotations

import copy
import json

import pytest

from moe_atlas.api import AuditOptions, audit, baseline
from moe_atlas.derivation.warnings import within_floor
from moe_atlas.views.measured import NoiseFloor
from scripts.oracle import tiny
from tests.support import pairs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("floor")
    base = tiny.save("qwen3_moe", root / "base", seed=5)
    pairs.variant(base, root / "light", pairs.jitter(3e-3, lambda name: "self_attn" in name))
    pairs.probe(root / "wide")
    narrow = copy.deepcopy(pairs.POLICY)
    narrow["rewrite"]["content"] = 1e-9
    pairs.probe(root / "narrow", policy=narrow)
    return root


def audited(place, probe, **options):
    made = audit(
        place / "base",
        place / "light",
        place / probe / "probes.yaml",
        receipt=place / "receipt.json",
        force=True,
        options=AuditOptions(**options),
    )
    return made.body


@pytest.fixture(scope="module")
def stored(place):
    path = place / "baseline.json"
    options = AuditOptions(noise_floor="bfloat16", dtype="float32")
    made = baseline(place / "base", place / "wide" / "probes.yaml", receipt=path, options=options)
    assert made.body["noise_floor"]["execution"] == "bfloat16"
    assert max(row["content_drift"] for row in made.body["noise_floor"]["layers"]) > 1e-4
    return path


def test_it_is_not_measured_unasked(place, stored):
    assert audited(place, "wide", dtype="float32")["noise_floor"] is None
    assert (
        audited(place, "narrow", dtype="float32")["noise_floor"] is None
    )  # nothing is stored to hold it against


def test_a_budget_near_the_stored_floor_has_it_measured_and_warns(place, stored):
    body = audited(place, "narrow", dtype="float32", baseline=stored)
    assert body["noise_floor"]["execution"] == "bfloat16"
    messages = [warning["message"] for warning in body["warnings"] if warning["code"] == "noise-floor"]
    assert any("content_drift" in message for message in messages)


def test_only_budgets_near_the_floor_of_protected_layers_count():
    layers = [{"layer": 1, "content_drift": 0.01}, {"layer": 2, "content_drift": 0.5}]
    floor = NoiseFloor({"layers": layers})
    assert within_floor(floor, {"content": 0.099}, [1]) == {"content": 0.01}
    assert within_floor(floor, {"content": 0.1}, [1]) == {}
    assert within_floor(floor, {"content": None}, [1, 2]) == {}
    assert within_floor(None, {"content": 0.001}, [1]) == {}


def test_flips_inside_the_band_are_told_from_those_outside(place):
    quiet = audited(place, "wide", dtype="float32")
    noisy = audited(place, "wide", dtype="float32", noise_floor="bfloat16")
    for before, after in zip(quiet["layers"], noisy["layers"], strict=True):
        assert before["pair"]["flips"]["inside"] == 0
        assert after["pair"]["flips"]["changed"] == before["pair"]["flips"]["changed"]
        assert (
            after["pair"]["flips"]["inside"] + after["pair"]["flips"]["outside"]
            == after["pair"]["flips"]["changed"]
        )
    assert json.dumps(quiet["predicates"]) == json.dumps(noisy["predicates"])
