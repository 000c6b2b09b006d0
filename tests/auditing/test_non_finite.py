"""NaN and infinity on a few tokens: a finding about the tuned checkpoint, not a lack of evidence, wherever they are.

All stored weights are finite; what they compute is not.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from moe_atlas.api import AuditOptions, audit
from moe_atlas.probes.registration import register
from scripts.oracle import tiny
from tests.support import pairs

DOCUMENTS, LENGTH, RARE = 40, 12, 47
HOLDERS = (3, 11, 12)
HUGE = 3e38
ROLES = {"prose": "base", "code": "base", "sft": "task", "canary": "canary"}
RULES = {"sft": {"success": {"metric": "nll", "at_most": 99}}, "canary": {"max_nll_increase": 9}}
POLICY = {key: value for key, value in pairs.POLICY.items() if key != "task"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("non-finite")


@pytest.fixture(scope="module")
def probe(root):
    """A registered probe set in which three windows of one domain hold the rare token, at one place."""

    def make(domain="prose", place=LENGTH - 1, **evaluation):
        folder = root / f"{domain}-{place}-{len(evaluation)}"
        folder.mkdir(exist_ok=True)
        generator = np.random.default_rng(0)
        for name in ROLES:
            tokens_NS = generator.integers(0, RARE, (DOCUMENTS, LENGTH))
            if name == domain:
                tokens_NS[HOLDERS, place] = RARE
            lines = [
                json.dumps({"id": f"{name}-{n}", "tokens": one.tolist()}) for n, one in enumerate(tokens_NS)
            ]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        config = {
            "schema": "atlas/probes/v1",
            "name": "rare",
            "windows": {"tokens": LENGTH, "per_document": 1, "seed": 7},
            "evaluation": {"experts": "active", "token_stride": 1, "quantile": 0.9} | evaluation,
            "protected_layers": "all",
            "domains": [
                {"name": name, "role": role, "source": f"{name}.jsonl"} | RULES.get(name, {})
                for name, role in ROLES.items()
            ],
            "policy": POLICY,
        }
        path = folder / "probes.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        register(path, force=True)
        return path

    return make


@pytest.fixture(scope="module")
def granite(root):
    """A family whose embeddings are multiplied: a large finite row leaves the finite numbers at once."""
    return tiny.save("granitemoe", root / "granite", seed=3)


@pytest.fixture(scope="module")
def sigmoid(root):
    """A family with sigmoid scores, groups and a selection bias."""
    return tiny.save("deepseek_v3", root / "sigmoid", seed=3)


def huge_row(tensors):
    tensors["model.embed_tokens.weight"][RARE] = HUGE


@pytest.fixture
def judged(tmp_path):
    def call(base, tuned, path, dtype="float32"):
        return audit(
            base, tuned, path, receipt=tmp_path / "r.json", force=True, options=AuditOptions(dtype=dtype)
        )

    return call


def found(receipt):
    """Result and reason of the gate in every domain."""
    lines = receipt.body["predicates"]["base_domain_damage"]["evidence"]
    return {e["domain"]: (e["result"], e["reason"]) for e in lines if e["gate"] == "non_finite_output"}


@pytest.mark.parametrize("domain", ROLES)
@pytest.mark.parametrize("place", [0, LENGTH - 1])
def test_an_embedding_row_that_overflows_fails_in_whatever_domain_it_stands(
    granite, probe, root, judged, domain, place
):
    tuned = pairs.variant(granite, root / "huge-row", huge_row)
    receipt = judged(granite, tuned, probe(domain, place))
    assert receipt.verdict == "fail"
    reason = "NaN or infinity in 3 of 40 windows, from layer 0 on, where the base has none"
    expected = dict.fromkeys(ROLES, ("pass", None)) | {domain: ("fail", reason)}
    assert found(receipt) == expected
    first = [step["pattern"] for step in receipt.body["next_steps"]][0]
    assert first == "the tuned checkpoint computes NaN or infinity"
    windows = receipt.windows()
    number, counts_W = list(ROLES).index(domain), windows["layers.0.tuned.non_finite"]
    assert (counts_W[windows["windows.domain"] != number] == 0).all()
    assert np.count_nonzero(counts_W) == len(HOLDERS)
    assert not any(values.any() for name, values in windows.items() if name.endswith("base.non_finite"))


@pytest.mark.parametrize("both", [False, True])
def test_where_the_base_is_not_finite_nothing_is_blamed_on_the_tune(granite, probe, root, judged, both):
    base = pairs.variant(granite, root / "huge-base", huge_row)
    tuned = pairs.variant(
        base if both else granite, root / f"mended-{both}", pairs.jitter(1e-4, lambda n: "q_proj" in n)
    )
    receipt = judged(base, tuned, probe("sft", 0))
    assert found(receipt)["sft"] == (
        "undetermined",
        "the base itself holds NaN or infinity in 3 of 40 windows",
    )
    assert found(receipt)["prose"] == ("pass", None)
    assert receipt.verdict == "inconclusive"
    assert [row["non_finite_base"] for row in receipt.body["domains"]] == [0, 0, 3, 0]


def unreachable(tensors):
    for name in tensors:
        if name.endswith("layers.2.mlp.gate.e_score_correction_bias"):
            tensors[name][5] = -100.0


def overflowing(tensors):
    for name in tensors:
        if ".layers.2.mlp.experts.5." in name:
            tensors[name] = tensors[name] * 1e25


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_expert_that_overflows_and_is_only_evaluated_fails(sigmoid, probe, root, judged, dtype):
    """No token is routed to it, so that outputs, and every gated channel, are what they were."""
    base = pairs.variant(sigmoid, root / "unreachable", unreachable)
    tuned = pairs.variant(base, root / "overflowing", overflowing)
    receipt = judged(base, tuned, probe(experts="all"), dtype=dtype)
    assert [row["nll_increase"]["estimate"] for row in receipt.body["domains"]] == [0.0] * 4
    assert receipt.verdict == "fail"
    results = found(receipt)
    assert {results[name][0] for name in ("prose", "code")} == {"fail"}  # experts are evaluated there alone
    assert "from layer 2 on" in results["prose"][1]
    assert {results[name][0] for name in ("sft", "canary")} == {"pass"}
    assert (
        receipt.windows()["layers.2.tuned.expert_share" if False else "layers.2.tuned.counts"][:, 5].sum()
        == 0
    )


def test_an_expert_that_is_only_drawn_as_another_ones_yardstick_is_counted(sigmoid, probe, root, judged):
    base = pairs.variant(sigmoid, root / "unreachable-2", unreachable)
    receipt = judged(base, pairs.variant(base, root / "overflowing-2", overflowing), probe())
    windows = receipt.windows()
    specificity_W = windows["layers.2.tuned.overlap_specificity"]
    assert np.isinf(specificity_W).any()
    assert np.isfinite(windows["layers.2.pair.content_drift"]).all()
    counts_W = windows["layers.2.tuned.non_finite"]
    assert ((counts_W[: len(specificity_W)] > 0) == np.isinf(specificity_W)).all()
    assert receipt.verdict == "fail"


def test_an_expert_that_only_the_base_routes_to_is_counted_at_the_anchor(sigmoid, probe, root, judged):
    def change(tensors):
        unreachable(tensors)
        overflowing(tensors)

    windows = judged(sigmoid, pairs.variant(sigmoid, root / "left", change), probe()).windows()
    routed_W = windows["layers.2.base.counts"][:, 5]
    assert routed_W.sum() > 0
    assert windows["layers.2.tuned.counts"][:, 5].sum() == 0
    assert (windows["layers.2.tuned.non_finite"][: len(routed_W)] >= routed_W).all()


@pytest.mark.parametrize("stride", [1, 5])
def test_a_routed_expert_that_overflows_is_counted_on_every_token(sigmoid, probe, root, judged, stride):
    tuned = pairs.variant(sigmoid, root / "routed-overflow", overflowing)
    receipt = judged(sigmoid, tuned, probe(token_stride=stride))
    windows = receipt.windows()
    routed_W = windows["layers.2.tuned.counts"][:, 5]
    assert routed_W.sum() > 0
    assert (windows["layers.2.tuned.non_finite"][: len(routed_W)] >= routed_W).all()
    assert not windows["layers.1.tuned.non_finite"].any()
    # Behind the last layer no token sees another one: the last position, which is not scored, is broken by itself.
    assert windows["output.non_finite_tuned"][: len(routed_W)].tolist() == routed_W.tolist()
    assert receipt.verdict == "fail"
    assert {result for result, _ in found(receipt).values()} == {"fail"}
    assert all("from layer 2 on" in reason for _, reason in found(receipt).values())


def test_a_gate_logit_that_overflows_behind_a_sigmoid_fails(sigmoid, probe, root, judged):
    """Scores, weights and outputs stay finite: the sigmoid of an infinite logit is 0 or 1."""

    def steep(tensors):
        weight_ED = tensors["model.layers.2.mlp.gate.weight"]
        weight_ED[3] = 0.0
        weight_ED[3, 0] = HUGE

    receipt = judged(sigmoid, pairs.variant(sigmoid, root / "steep", steep), probe())
    assert all(np.isfinite(receipt.windows()["output.nll_tuned"]))
    assert {result for result, _ in found(receipt).values()} == {"fail"}
    assert "from layer 2 on" in found(receipt)["sft"][1]


def test_a_logit_that_overflows_is_named_by_the_output_alone(probe, root, judged):
    def head(tensors):
        tensors["lm_head.weight"][RARE] = tensors["lm_head.weight"][RARE].sign() * HUGE

    base = tiny.save("deepseek_v3", root / "untied", seed=4)
    receipt = judged(base, pairs.variant(base, root / "steep-head", head), probe())
    assert receipt.verdict == "fail"
    result, reason = found(receipt)["code"]
    assert result == "fail"
    assert "in the output alone" in reason


def test_a_state_of_zeros_is_neither_undefined_nor_broken(sigmoid, probe, root, judged):
    """Padding rows of embeddings are zero in many checkpoints, and a first token attends to nothing else."""

    def silent(tensors):
        tensors["model.embed_tokens.weight"][RARE] = 0.0

    base = pairs.variant(sigmoid, root / "silent", silent)
    tuned = pairs.variant(base, root / "silent-tuned", pairs.jitter(1e-3, lambda n: "experts" in n))
    receipt = judged(base, tuned, probe(place=0))
    assert set(found(receipt).values()) == {("pass", None)}
    for layer in receipt.body["layers"]:
        assert layer["pair"]["coordinate_drift_z"]["estimate"] is not None
    assert np.isfinite(receipt.windows()["layers.1.pair.coordinate_drift"]).all()
