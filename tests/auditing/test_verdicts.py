"""The same properties as a pipeline meets them: what the verdict is, and what the receipt says it rests on."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from moe_atlas.api import AuditOptions, audit
from scripts.oracle import tiny
from tests.auditing.test_properties import CHANNELS, is_router, permute
from tests.support import pairs

CASES = ("deepseek_v3", "qwen3_moe")
ROUTED = {"deepseek_v3": [1, 2], "qwen3_moe": [0, 1]}
GATED = ("coordinate_drift_z", "boundary_drift", "transition_drift", "content_drift")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("verdicts")


@pytest.fixture(scope="module")
def probes(root):
    return pairs.probe(root / "probe")


@pytest.fixture(scope="module")
def few(root):
    return pairs.probe(root / "few", documents=4, policy=pairs.SAME)


@pytest.fixture(scope="module", params=CASES)
def base(request, root):
    return tiny.save(request.param, root / request.param, seed=3)


@pytest.fixture
def judge(tmp_path):
    def call(base, tuned, probes, **options):
        options = AuditOptions(**({"dtype": "float32"} | options))
        return audit(base, tuned, probes, receipt=tmp_path / "receipt.json", force=True, options=options)

    return call


def failed(receipt):
    gates = [gate for predicate in receipt.body["predicates"].values() for gate in predicate["evidence"]]
    return {gate["gate"] for gate in gates if gate["result"] == "fail"}


def intervals(receipt, key):
    return [layer["pair"][key] for layer in receipt.body["layers"]]


def assert_exact(receipt, keys=GATED):
    for key in keys:
        for found in intervals(receipt, key):
            assert (found["estimate"], found["low"], found["high"]) == (0.0, 0.0, 0.0), key
            assert found["exact"] is True, key


def swapped(layer):
    """Experts 0 and 1 change places with their router rows; they share a group, so groups map onto groups."""
    return permute([layer], router=True, within=(0, 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("router", ["float32", "native"])
def test_a_checkpoint_against_itself_passes_however_few_the_documents(base, few, judge, dtype, router):
    receipt = judge(base, base, few, dtype=dtype, router=router)
    assert (receipt.verdict, receipt.exit_code) == ("pass", 0)
    assert_exact(receipt)


def test_nothing_that_was_tuned_passes_by_no_other_policy(base, few, probes, root, judge):
    """Whatever the layout: an audit of equal values has nothing to say of a tune."""
    layer = ROUTED[base.name][-1]
    others = {
        "resharded": pairs.variant(base, root / f"{base.name}-again", lambda tensors: None, shards=2),
        "fused": pairs.variant(base, root / f"{base.name}-fused-again", fuse(ROUTED[base.name])),
        "relabelled": pairs.variant(base, root / f"{base.name}-pure-{layer}", swapped(layer)),
    }
    for tuned in (base, *others.values()):
        receipt = judge(base, tuned, probes)
        assert (receipt.verdict, receipt.exit_code) == ("inconclusive", 3)
        found = receipt.body["predicates"]["knowledge_expansive"]
        assert (found["outcome"], found["passed"]) == ("nothing-tuned", None)
        assert [(line["gate"], line["result"]) for line in found["evidence"]] == [
            ("nothing_tuned", "undetermined")
        ]
        for probe in (few, probes):
            warned = [warning["code"] for warning in judge(base, tuned, probe).body["warnings"]]
            assert "nothing-tuned" in warned


def fuse(layers):
    """Store the experts of these layers as transformers does in memory: [E, 2H, D] and [E, D, H]."""

    def change(tensors):
        for layer in layers:
            prefix = f"model.layers.{layer}.mlp.experts."
            count = sum(name.startswith(prefix) and name.endswith("up_proj.weight") for name in tensors)
            parts = {
                role: torch.stack([tensors.pop(f"{prefix}{e}.{role}.weight") for e in range(count)])
                for role in ("gate_proj", "up_proj", "down_proj")
            }
            tensors[f"{prefix}gate_up_proj"] = torch.cat([parts["gate_proj"], parts["up_proj"]], dim=1)
            tensors[f"{prefix}down_proj"] = parts["down_proj"]

    return change


@pytest.mark.parametrize("layout", ["resharded", "reordered", "fused"])
def test_another_layout_of_the_same_tensors_is_the_same_checkpoint(base, few, root, judge, layout):
    change, shards = {
        "resharded": (lambda tensors: None, 3),
        "reordered": (lambda tensors: dict(reversed(tensors.items())), 1),
        "fused": (fuse(ROUTED[base.name]), 2),
    }[layout]
    other = pairs.variant(base, root / f"{base.name}-{layout}", change, shards=shards)
    for pair in ((base, other), (other, base)):
        receipt = judge(*pair, few)
        assert receipt.verdict == "pass"
        assert_exact(receipt)
        assert all(row["identical"] for row in receipt.body["weights"]["tensors"])


def test_a_pure_relabelling_passes_as_the_same_checkpoint_would(base, few, root, judge):
    for layer in ROUTED[base.name]:
        relabelled = pairs.variant(base, root / f"{base.name}-pure-{layer}", swapped(layer))
        receipt = judge(base, relabelled, few)
        assert receipt.verdict == "pass"
        assert_exact(receipt)
        named = {row["layer"]: row["assignment"] for row in receipt.body["identity"]["layers"]}
        assert named[layer] == "relabelled"
        assert receipt.body["identity"]["breaches"] == []


def test_a_pure_relabelling_changes_no_router_in_the_ledger(base, root, judge):
    policy = pairs.SAME | {"weights": {"must_not_change": ["router", "selection_bias"], "must_change": []}}
    strict = pairs.probe(root / "strict", documents=4, policy=policy)
    layer = ROUTED[base.name][-1]
    relabelled = pairs.variant(base, root / f"{base.name}-pure-{layer}", swapped(layer))
    receipt = judge(base, relabelled, strict)
    assert receipt.verdict == "pass"
    assert receipt.body["weights"]["classes"]["router"]["changed"] == 0
    assert receipt.body["weights"]["as_stored"]["classes"]["router"]["changed"] == 1


@pytest.mark.parametrize(("scale", "verdict"), [(2e-3, "pass"), (0.4, "fail")])
def test_a_relabelling_moves_no_number_of_the_pair_and_no_verdict(base, probes, root, judge, scale, verdict):
    def chosen(name):
        return "experts" in name or "self_attn" in name

    first = ROUTED[base.name][0]
    tuned = pairs.variant(base, root / f"{base.name}-tuned", pairs.jitter(scale, chosen))
    relabelled = pairs.variant(tuned, root / f"{base.name}-tuned-swap", swapped(first))
    plain = judge(base, tuned, probes)
    expected = plain.windows()
    moved = judge(base, relabelled, probes)
    found = moved.windows()
    assert plain.verdict == moved.verdict == verdict
    assert expected.keys() <= found.keys()
    for name, values in expected.items():
        ours = found[name]
        if name.startswith(f"layers.{first}.tuned.") and values.ndim == 2:
            ours = ours[:, [1, 0, *range(2, values.shape[1])]]  # tuned health keeps its own index
        if "specificity" in name:  # its partner is drawn in the checkpoint's own numbering…
            continue
        if "content_published" in name:  # …and may lend its row to this one
            assert np.allclose(values, ours, rtol=1e-6), name
        else:
            assert np.array_equal(values, ours, equal_nan=True), name
    beside = next(layer["same_index"] for layer in moved.body["layers"] if layer["layer"] == first)
    assert beside["content_drift"]["estimate"] > 0.2
    assert beside["boundary_drift"]["estimate"] > 0.05


def test_tuned_health_after_a_relabelling_is_that_of_the_checkpoint_alone(base, few, root):
    first = ROUTED[base.name][0]
    relabelled = pairs.variant(base, root / f"{base.name}-alone", swapped(first))
    _, beside = pairs.audited(base, relabelled, few, dtype="float32")
    _, alone = pairs.audited(relabelled, None, few, dtype="float32")
    for name, values in alone.items():
        if ".base." in name:
            ours = beside[name.replace(".base.", ".tuned.")]
            assert np.allclose(values, ours, rtol=1e-4, atol=1e-6, equal_nan=True), name


def test_experts_permuted_without_their_router_rows_fail(base, probes, root, judge):
    layer = ROUTED[base.name][-1]
    broken = pairs.variant(base, root / f"{base.name}-torn", permute([layer], router=False))
    receipt = judge(base, broken, probes)
    assert receipt.exit_code == 1
    assert {"identity", "content"} <= failed(receipt)
    assert "same_index" not in receipt.body["layers"][-1]


def test_router_noise_alone_is_exactly_zero_in_content(base, probes, root, judge):
    noisy = pairs.variant(base, root / f"{base.name}-noisy", pairs.jitter(0.3, is_router))
    receipt = judge(base, noisy, probes)
    assert_exact(receipt, ["content_drift"])
    assert receipt.verdict == "fail"
    assert {"boundary", "transition"} & failed(receipt)
    assert "content" not in failed(receipt)


def test_a_moved_backbone_fails_on_transport_alone(base, probes, root, judge):
    """Frozen experts and routers behind a moved backbone: the published distillation run."""

    def backbone(name):
        return "self_attn" in name and "norm" not in name

    moved = pairs.variant(base, root / f"{base.name}-moved", pairs.jitter(0.4, backbone))
    receipt = judge(base, moved, probes)
    assert_exact(receipt, ["boundary_drift", "transition_drift", "content_drift"])
    assert min(found["low"] for found in intervals(receipt, "coordinate_drift_z")) > 0
    assert max(found["low"] for found in intervals(receipt, "native_boundary_drift")) > 0
    for layer in receipt.body["layers"]:
        assert layer["base"]["expert_share"] != layer["tuned"]["expert_share"]
    assert receipt.verdict == "fail"
    assert "coordinate" in failed(receipt)
    assert not {"boundary", "transition", "content"} & failed(receipt)


def test_a_gain_that_moved_leaves_the_state_in_front_of_it(base, probes, root, judge):
    last = ROUTED[base.name][-1]

    def gain(name):
        return name.endswith(f"layers.{last}.post_attention_layernorm.weight")

    receipt = judge(base, pairs.variant(base, root / f"{base.name}-gained", pairs.jitter(3e-3, gain)), probes)
    gates = receipt.body["predicates"]["protected_atlas_rewrite"]["evidence"]
    assert {gate["result"] for gate in gates if gate["gate"] == "coordinate"} == {"pass"}
    layer = receipt.body["layers"][-1]
    assert layer["exact"] == {"states": True, "gain": False, "router": False, "experts": True}
    assert layer["pair"]["coordinate_drift_z"]["exact"] is True
    for key in ("coordinate_drift", "transition_drift", "content_drift"):
        assert layer["pair"][key]["estimate"] > 0
        assert "exact" not in layer["pair"][key]


def test_a_copied_expert_slice_fails_and_is_named(base, probes, root, judge):
    layer = ROUTED[base.name][0]

    def copy_slice(tensors):
        for name in list(tensors):
            found = re.search(r"\.experts\.(\d+)\.", name)
            if found and f".layers.{layer}." in name and int(found[1]) >= 4:
                source = name.replace(f".experts.{found[1]}.", f".experts.{int(found[1]) - 4}.")
                tensors[name] = tensors[source].clone()

    receipt = judge(base, pairs.variant(base, root / f"{base.name}-ep", copy_slice), probes)
    assert receipt.exit_code == 1
    gates = receipt.body["predicates"]["protected_atlas_rewrite"]["evidence"]
    reasons = [gate["reason"] for gate in gates if gate["gate"] == "identity"]
    assert any(reason.startswith("cloned-experts: experts [0, 4]") for reason in reasons)


def test_a_tune_that_never_landed_fails_must_change(base, root, judge):
    policy = pairs.POLICY | {"weights": {"must_change": ["routed_expert"], "must_not_change": []}}
    strict = pairs.probe(root / "must-change", documents=4, policy=policy)
    receipt = judge(base, base, strict)
    assert receipt.exit_code == 1
    assert failed(receipt) == {"weights"}


def test_a_nan_in_an_expert_that_no_token_reaches_fails(root, probes, judge):
    expert, layer = 5, 2

    def unreachable(tensors):
        tensors[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"][expert] = -100.0

    def poison(tensors):
        tensors[f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"][0, 0] = torch.nan

    source = tiny.save("deepseek_v3", root / "for-nan", seed=3)
    base = pairs.variant(source, root / "unreachable", unreachable)
    receipt = judge(base, pairs.variant(base, root / "poisoned", poison), probes)
    for side in ("base", "tuned"):
        assert receipt.body["layers"][-1][side]["expert_share"][expert] == 0.0
    assert receipt.exit_code == 1
    assert "non_finite_weights" in failed(receipt)
    assert all(domain["nll_increase"]["estimate"] == 0.0 for domain in receipt.body["domains"])


def test_channels_that_are_zero_without_equal_bytes_do_not_pass(base, root, judge, probes):
    """A router row of an expert that is far from every boundary: nothing moves, yet nothing proves it."""
    names = [f"layers.{layer}.pair.{channel}" for layer in ROUTED[base.name] for channel in CHANNELS]

    def nudge(tensors):
        for name in tensors:
            if name.endswith("mlp.gate.weight"):
                tensors[name][0, 0] = torch.nextafter(tensors[name][0, 0], torch.tensor(1.0))

    receipt = judge(base, pairs.variant(base, root / f"{base.name}-nudge", nudge), probes)
    boundary = intervals(receipt, "boundary_drift")
    assert all(found["estimate"] == 0.0 and "exact" not in found for found in boundary)
    assert receipt.verdict == "inconclusive"
    assert set(names) <= set(receipt.windows())


@pytest.mark.parametrize("role", ["", "down_proj"])
def test_an_expert_that_a_converter_zeroed_fails_by_name(base, probes, root, judge, role):
    layer = ROUTED[base.name][0]

    def zero(tensors):
        for name in tensors:
            if f"layers.{layer}.mlp.experts.3.{role}" in name:
                tensors[name] = torch.zeros_like(tensors[name])

    zeroed = pairs.variant(base, root / f"{base.name}-zeroed{role}", zero)
    receipt = judge(base, zeroed, probes)
    assert receipt.exit_code == 1
    gates = receipt.body["predicates"]["protected_atlas_rewrite"]["evidence"]
    reasons = [gate["reason"] for gate in gates if gate["gate"] == "identity"]
    assert reasons == [
        "zeroed-experts: experts [3] have a matrix that is zero throughout, in the base they do not"
    ]
    breaches = judge(zeroed, zeroed, probes).body["identity"]["breaches"]
    assert not any(breach["kind"] == "zeroed-experts" for breach in breaches)
