"""What must hold of any audit, whatever the numbers: A/A, resharding, relabelling, frozen parts, planted damage."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from scripts.oracle import tiny
from tests.support import pairs

CHANNELS = ("coordinate_drift", "coordinate_drift_z", "boundary_drift", "transition_drift", "content_drift")
ANCHORED = ("boundary_drift", "transition_drift", "content_drift")
CASES = ("deepseek_v3", "qwen3_moe")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


@pytest.fixture(scope="module")
def probes(root):
    return pairs.probe(root / "probe")


@pytest.fixture(scope="module", params=CASES)
def base(request, root):
    return tiny.save(request.param, root / request.param, seed=3)


def pair_means(arrays, channel):
    found = {name: values for name, values in arrays.items() if name.endswith(f".pair.{channel}")}
    assert found
    return {name: float(np.nanmean(values)) for name, values in found.items()}


def assert_zero(arrays, channels=CHANNELS):
    for channel in channels:
        assert set(pair_means(arrays, channel).values()) == {0.0}, channel


def experts_of(name):
    return re.search(r"\.experts\.(\d+)\.", name)


def is_router(name):
    return ".gate.weight" in name or "e_score_correction_bias" in name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_against_itself_is_exactly_zero(base, probes, dtype):
    facts, arrays = pairs.audited(base, base, probes, dtype=dtype)
    assert_zero(arrays)
    assert facts["identity"]["identical_checkpoints"] is True
    assert np.array_equal(arrays["output.nll_base"], arrays["output.nll_tuned"])
    assert not arrays["output.kl"].any()


def test_resharded_and_reordered_is_the_same_checkpoint(base, probes, root):
    def reverse(tensors):
        return dict(reversed(tensors.items()))

    resharded = pairs.variant(base, root / f"{base.name}-sharded", reverse, shards=3)
    facts, arrays = pairs.audited(base, resharded, probes)
    assert_zero(arrays)
    digests = {side: facts["checkpoints"][side]["digest"] for side in ("base", "tuned")}
    assert digests["base"] == digests["tuned"]


def permute(layers, *, router, within=None):
    """Cycle the experts of some layers by one place, or swap those of a group; router rows follow if asked."""

    def change(tensors):
        for layer in layers:
            prefix = f"model.layers.{layer}.mlp."
            count = len(tensors[f"{prefix}gate.weight"])
            order = list(range(count)) if within else [*range(1, count), 0]
            if within:
                order[within[0]], order[within[1]] = order[within[1]], order[within[0]]
            original = {name: tensor.clone() for name, tensor in tensors.items()}
            for new, old in enumerate(order):
                for part in ("gate_proj", "up_proj", "down_proj"):
                    tensors[f"{prefix}experts.{new}.{part}.weight"] = original[
                        f"{prefix}experts.{old}.{part}.weight"
                    ]
            for name in ("gate.weight", "gate.e_score_correction_bias"):
                if router and prefix + name in tensors:
                    tensors[prefix + name] = original[prefix + name][order].contiguous()

    return change


def test_a_consistent_relabelling_is_reported_and_costs_nothing(base, probes, root):
    last = 2 if base.name == "deepseek_v3" else 1
    # Experts 0 and 1 share a group, so that group-limited routing is relabelled consistently.
    swapped = pairs.variant(base, root / f"{base.name}-swap", permute([last], router=True, within=(0, 1)))
    facts, arrays = pairs.audited(base, swapped, probes)
    assert facts["identity"]["layers"][-1]["assignment"] == "relabelled"
    assert facts["identity"]["layers"][-1]["match"][:2] == [1, 0]
    assert facts["identity"]["breaches"] == []
    assert max(pair_means(arrays, "boundary_drift").values()) == 0.0
    assert max(pair_means(arrays, "content_drift").values()) < 1e-6
    assert float(arrays[f"layers.{last}.same_index.boundary_drift"].mean()) > 0.05
    assert all(row["identical"] for row in facts["weights"]["tensors"] if row["class"] == "routed_expert")
    stored = [row for row in facts["weights"]["as_stored"]["tensors"] if row["class"] == "routed_expert"]
    assert any(not row["identical"] for row in stored)


def test_experts_permuted_without_their_router_rows_are_a_breach(base, probes, root):
    last = 2 if base.name == "deepseek_v3" else 1
    broken = pairs.variant(base, root / f"{base.name}-broken", permute([last], router=False))
    facts, arrays = pairs.audited(base, broken, probes)
    assert facts["identity"]["breaches"][0]["kind"] == "experts-moved-without-router"
    assert facts["identity"]["breaches"][0]["layer"] == last
    assert pair_means(arrays, "content_drift")[f"layers.{last}.pair.content_drift"] > 0.3


def test_router_noise_alone_leaves_content_at_zero(base, probes, root):
    noisy = pairs.variant(base, root / f"{base.name}-router", pairs.jitter(0.3, is_router))
    facts, arrays = pairs.audited(base, noisy, probes)
    assert_zero(arrays, ["content_drift"])
    assert min(pair_means(arrays, "transition_drift").values()) > 0
    assert max(pair_means(arrays, "boundary_drift").values()) > 0
    assert facts["layers"][0]["exact"] == {"states": True, "gain": True, "router": False, "experts": True}


def test_a_moved_backbone_leaves_the_anchored_channels_at_zero(base, probes, root):
    moved = pairs.variant(
        base,
        root / f"{base.name}-backbone",
        pairs.jitter(0.4, lambda n: "self_attn" in n and "norm" not in n),
    )
    _, arrays = pairs.audited(base, moved, probes)
    assert_zero(arrays, ANCHORED)
    assert min(pair_means(arrays, "coordinate_drift_z").values()) > 1e-4
    assert max(pair_means(arrays, "native_boundary_drift").values()) > 0


def test_a_copied_expert_slice_is_named(base, probes, root):
    def copy_slice(tensors):
        for name in list(tensors):
            found = experts_of(name)
            if found and ".layers.1." in name and int(found[1]) >= 4:
                source = name.replace(f".experts.{found[1]}.", f".experts.{int(found[1]) - 4}.")
                tensors[name] = tensors[source].clone()

    copied = pairs.variant(base, root / f"{base.name}-slice", copy_slice)
    facts, _ = pairs.audited(base, copied, probes)
    clones = next(row["clones"] for row in facts["identity"]["layers"] if row["layer"] == 1)
    assert clones == {"base": [], "tuned": [[0, 4], [1, 5], [2, 6], [3, 7]]}
    assert {b["kind"] for b in facts["identity"]["breaches"]} >= {"cloned-experts", "expert-identity-lost"}


def test_a_fresh_expert_in_place_of_a_trained_one_is_named(base, probes, root):
    def train(tensors):
        """Rows of many lengths, as training leaves them."""
        for name, tensor in tensors.items():
            if experts_of(name):
                tensors[name] = tensor * torch.linspace(0.2, 2.0, len(tensor))[:, None]

    def replace(tensors):
        train(tensors)
        for name, tensor in tensors.items():
            found = experts_of(name)
            if found and ".layers.1." in name and found[1] == "2":
                tensors[name] = 0.02 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5))

    trained = pairs.variant(base, root / f"{base.name}-trained", train)
    replaced = pairs.variant(base, root / f"{base.name}-replaced", replace)
    facts, _ = pairs.audited(trained, replaced, probes)
    assert {row["layer"]: row["init_like"] for row in facts["identity"]["layers"]}[1] == {
        "base": [],
        "tuned": [2],
    }
    assert "init-like-experts" in {b["kind"] for b in facts["identity"]["breaches"]}


def test_a_nan_in_an_expert_that_is_never_routed_is_counted(base, probes, root):
    _, arrays = pairs.audited(base, None, probes)
    layer, counts = next(
        (name.split(".")[1], values.sum(0)) for name, values in arrays.items() if name.endswith("base.counts")
    )
    expert = int(np.argmin(counts))

    def poison(tensors):
        tensors[f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"][0, 0] = torch.nan

    poisoned = pairs.variant(base, root / f"{base.name}-nan", poison)
    facts, _ = pairs.audited(base, poisoned, probes)
    assert facts["weights"]["classes"]["routed_expert"]["nonfinite"] == {"base": 0, "tuned": 1}


def test_a_compensated_gain_moves_g_but_not_z(base, probes, root):
    def compensate(tensors):
        layer = 2 if base.name == "deepseek_v3" else 1
        prefix = f"model.layers.{layer}."
        scale = torch.linspace(0.5, 2.0, 32)
        tensors[f"{prefix}post_attention_layernorm.weight"] *= scale
        for name in tensors:
            reads = name.endswith(("gate_proj.weight", "up_proj.weight", "mlp.gate.weight"))
            if name.startswith(f"{prefix}mlp.") and reads:
                tensors[name] = tensors[name] / scale

    changed = pairs.variant(base, root / f"{base.name}-gain", compensate)
    _, arrays = pairs.audited(base, changed, probes)
    last = max(pair_means(arrays, "coordinate_drift"))
    assert pair_means(arrays, "coordinate_drift")[last] > 0.01
    assert max(pair_means(arrays, "coordinate_drift_z").values()) == 0.0
    assert max(pair_means(arrays, "content_drift").values()) < 1e-5


def test_health_of_the_base_does_not_depend_on_the_tuned_checkpoint(base, probes, root):
    other = pairs.variant(base, root / f"{base.name}-other", pairs.jitter(0.5, lambda n: "norm" not in n))
    _, alone = pairs.audited(base, None, probes)
    _, beside = pairs.audited(base, other, probes)
    health = [name for name in alone if ".base." in name]
    assert health
    for name in health:
        assert np.array_equal(alone[name], beside[name], equal_nan=True), name


def test_the_perturbation_bound_holds(base, probes, root):
    other = pairs.variant(base, root / f"{base.name}-bound", pairs.jitter(0.3, lambda n: "norm" not in n))
    _, arrays = pairs.audited(base, other, probes)
    for name in [n for n in arrays if n.endswith("perturbation_budget.bound")]:
        actual = arrays[name.replace(".bound", ".actual")]
        assert (actual <= arrays[name] * (1 + 1e-5)).all()
        assert actual.min() > 0


def test_the_noise_floor_is_small_and_is_measured(base, probes):
    facts, _ = pairs.audited(base, base, probes, noise_floor="order")
    rows = facts["noise_floor"]["layers"]
    assert [row["layer"] for row in rows] == [layer["layer"] for layer in facts["layers"]]
    assert 0.0 < max(row["delta"] for row in rows) < 1e-4
    assert max(row["content_drift"] for row in rows) < 1e-5
