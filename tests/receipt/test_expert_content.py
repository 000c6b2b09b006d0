"""The worst expert of a layer: who is guarded, what bounds it, and what is said of all others."""

from __future__ import annotations

import numpy as np
import pytest

from moe_atlas.derivation.derive import derive
from tests.receipt import synthetic

EXPERT = 3


def made(change=None, **kwargs):
    facts, windows = synthetic.audit(**kwargs)
    sums, counts = (windows[f"layers.2.pair.expert_content.{key}"].copy() for key in ("sum", "count"))
    if change is not None:
        change(sums, counts)
    windows |= {"layers.2.pair.expert_content.sum": sums, "layers.2.pair.expert_content.count": counts}
    return facts, windows


def layer_two(receipt):
    return next(layer for layer in receipt["layers"] if layer["layer"] == 2)["pair"]


def broken(sums, counts):
    rng = np.random.default_rng(1)
    sums[:, EXPERT] = counts[:, EXPERT] * rng.uniform(0.6, 0.9, len(counts))


def line(receipt, layer=2):
    evidence = receipt["predicates"]["protected_atlas_rewrite"]["evidence"]
    return next(
        entry for entry in evidence if (entry["gate"], entry.get("layer")) == ("expert_content", layer)
    )


def test_the_worst_expert_is_named_with_its_mean_over_the_tokens_that_use_it():
    facts, windows = made(broken)
    found = layer_two(derive(facts, windows))["expert_content"]
    sums, counts = (windows[f"layers.2.pair.expert_content.{key}"] for key in ("sum", "count"))
    assert found["expert"] == EXPERT
    assert found["estimate"] == pytest.approx(sums[:, EXPERT].sum() / counts[:, EXPERT].sum(), rel=1e-12)
    assert found["tokens"] == counts[:, EXPERT].sum()
    assert found["low"] < found["estimate"] < found["high"]
    assert 0.35 < found["simultaneous_low"] < found["low"]
    assert line(derive(facts, windows))["result"] == "fail"


def test_a_bound_on_the_worst_is_the_largest_of_any():
    """An expert with few tokens has the wider interval, and may be worse than the one with the largest mean."""

    def wide(sums, counts):
        broken(sums, counts)
        counts[:, 5] = 0
        counts[:40, 5] = 2
        sums[:, 5] = counts[:, 5] * (np.random.default_rng(2).random(len(counts)) < 0.65)

    one, two = (layer_two(derive(*made(change)))["expert_content"] for change in (broken, wide))
    assert (one["expert"], two["expert"]) == (EXPERT, EXPERT)
    assert (one["estimate"], one["low"]) == (two["estimate"], two["low"])
    assert two["high"] > one["high"]


@pytest.mark.parametrize(
    ("tokens", "documents", "guarded"), [(64, 30, True), (63, 30, False), (64, 29, False), (5000, 29, False)]
)
def test_an_expert_needs_tokens_and_documents_behind_it(tokens, documents, guarded):
    def few(sums, counts):
        counts[:, EXPERT] = 0
        counts[: documents - 1, EXPERT] = 2
        counts[documents - 1, EXPERT] = tokens - 2 * (documents - 1)
        broken(sums, counts)

    pair = layer_two(derive(*made(few)))
    assert pair["expert_coverage"] == {
        "guarded": 8 if guarded else 7,
        "thin": [] if guarded else [EXPERT],
        "unreached": [],
    }
    assert (pair["expert_content"]["expert"] == EXPERT) is guarded


def test_a_layer_none_of_whose_experts_can_be_judged_is_open():
    def nobody(sums, counts):
        counts[20:] = 0
        sums[20:] = 0

    receipt = derive(*made(nobody))
    assert line(receipt)["result"] == "undetermined"
    assert "no expert has 64 tokens of 30 documents behind it" in line(receipt)["reason"]
    assert layer_two(receipt)["expert_coverage"]["guarded"] == 0


def test_an_expert_that_is_not_finite_on_one_token_leaves_the_layer_open():
    def infinite(sums, counts):
        sums[0, EXPERT] = np.inf

    receipt = derive(*made(infinite))
    assert layer_two(receipt)["expert_content"]["estimate"] is None
    assert line(receipt)["result"] == "undetermined"


def test_an_expert_that_changes_alike_on_every_token_fails_though_nothing_varies():
    def alike(sums, counts):
        sums[:, EXPERT] = counts[:, EXPERT]

    receipt = derive(*made(alike))
    found = layer_two(receipt)["expert_content"]
    assert (found["estimate"], found["high"], found["simultaneous_low"]) == (1.0, None, 1.0)
    assert line(receipt)["result"] == "fail"


def test_an_expert_that_kept_its_bytes_beside_others_is_no_hole():
    def kept(sums, counts):
        sums[:, EXPERT] = 0.0

    assert line(derive(*made(kept)))["result"] == "pass"


def test_bytes_that_are_said_to_be_identical_are_refuted_by_a_change():
    facts, windows = made()
    for layer in facts["layers"]:
        layer["exact"] |= {"gain": True, "experts": True}
    receipt = derive(facts, windows)
    assert layer_two(receipt)["expert_content"]["estimate"] is None
    assert line(receipt)["result"] == "undetermined"


def test_where_content_is_undefined_the_weights_of_every_expert_are_judged():
    facts, windows = made()
    for layer in facts["layers"]:
        layer["undefined"] = {"content_drift": "a norm behind the block"}
    windows = {name: values for name, values in windows.items() if "content" not in name}
    receipt = derive(facts, windows)
    assert line(receipt)["result"] == "not-applicable"
    assert layer_two(receipt)["expert_coverage"] == {"guarded": 0, "thin": list(range(8)), "unreached": []}
    facts["layers"][1]["changes"]["experts"][EXPERT] = 1.2
    evidence = derive(facts, windows)["predicates"]["protected_atlas_rewrite"]["evidence"]
    found = next(entry for entry in evidence if entry["gate"] == "unmeasured_experts")
    assert (found["layer"], found["expert"], found["result"]) == (2, EXPERT, "undetermined")


def test_tensors_that_changed_unlike_those_of_other_layers_are_named():
    facts, windows = made(layers=(1, 2, 3, 4))
    facts["weights"]["tensors"] = [
        {
            "name": f"model.layers.{n}.input_layernorm.weight",
            "class": "norm",
            "layer": n,
            "relative_change": change,
        }
        for n, change in enumerate((0.01, 0.02, 0.9, 0.01))
    ]
    warnings = {warning["code"]: warning["message"] for warning in derive(facts, windows)["warnings"]}
    assert "model.layers.2.input_layernorm.weight by 0.9 of the norm" in warnings["weight-outliers"]
    assert "layers.1." not in warnings["weight-outliers"]
