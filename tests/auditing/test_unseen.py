"""One expert of many, experts that no token reaches, tokens that no window holds: what a mean over tokens hides."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import yaml

from moe_atlas.api import AuditOptions, audit
from moe_atlas.derivation.derive import derive
from moe_atlas.probes.registration import register
from moe_atlas.report.formats import markdown
from moe_atlas.views.receipt import ReceiptView
from scripts.oracle import tiny
from tests.support import pairs

SEEN = 40  # ids of the vocabulary of 48 that a window may hold
LAYER, EXPERT = 2, 5
BUDGETS = {"coordinate": 0.3, "boundary": 0.3, "transition": 0.1, "content": 0.3, "overlap_drop": 0.2}
BUDGETS |= {"dead_share_rise": 0.2, "entropy_drop": 0.2, "load_cv_rise": 0.4}
POLICY = {
    "task": "none",
    "resamples": 300,
    "rewrite": BUDGETS,
    "damage": {"nll": 0.2, "document_nll": 1, "document_share": 0.2},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("unseen")


@pytest.fixture(scope="module")
def probes(root):
    return pairs.probe(root / "probe", vocab=SEEN, length=24, policy=POLICY)


@pytest.fixture(scope="module")
def base(root):
    """Many experts, all of them in use, so that one of them moves no mean over tokens."""
    made = tiny.save("deepseek_v3", root / "made", seed=3, n_routed_experts=32, n_group=1, topk_group=1)

    def spread(tensors):
        for name in tensors:
            if name.endswith("e_score_correction_bias"):
                tensors[name].zero_()

    return pairs.variant(made, root / "base", spread)


@pytest.fixture(scope="module")
def unreached(base, root):
    """A base that never routes to one expert."""

    def silence(tensors):
        tensors[f"model.layers.{LAYER}.mlp.gate.e_score_correction_bias"][EXPERT] = -10.0

    return pairs.variant(base, root / "unreached", silence)


@pytest.fixture
def judge(tmp_path):
    def call(base, change, probes):
        tuned = pairs.variant(base, tmp_path / "tuned", change)
        options = AuditOptions(dtype="float32")
        return audit(base, tuned, probes, receipt=tmp_path / "receipt.json", options=options)

    return call


def healthy(tensors):
    """A tune that moves every tensor a little."""
    pairs.jitter(5e-3, lambda name: True)(tensors)


def noise(tensors, name, scale, generator):
    tensor = tensors[name]
    size = tensor.float().square().mean().sqrt()
    tensors[name] = tensor + scale * size * torch.randn(tensor.shape, generator=generator)


def and_one_expert(scale, layer=LAYER, expert=EXPERT):
    def change(tensors):
        healthy(tensors)
        generator = torch.Generator().manual_seed(5)
        for name in sorted(tensors):
            if name.startswith(f"model.layers.{layer}.mlp.experts.{expert}."):
                noise(tensors, name, scale, generator)

    return change


def lines(receipt, gate):
    return [
        line
        for predicate in receipt.body["predicates"].values()
        for line in predicate["evidence"]
        if line["gate"] == gate
    ]


def warned(receipt):
    return {warning["code"]: warning["message"] for warning in receipt.body["warnings"]}


def allowing(root, name, **policy):
    """The probe set under a policy that allows something by name, or that says something else of the rewrite."""
    rewrite = POLICY["rewrite"] | policy.pop("rewrite", {})
    changed = POLICY | {"rewrite": rewrite} | policy
    return pairs.probe(root / name, vocab=SEEN, length=24, policy=changed)


def test_a_healthy_tune_passes_and_warns_of_nothing(base, probes, judge):
    receipt = judge(base, healthy, probes)
    assert receipt.verdict == "pass"
    assert not warned(receipt).keys() & {"unreached-experts", "weight-outliers", "vocabulary-rows"}
    assert {line["result"] for line in lines(receipt, "expert_content")} == {"pass"}
    assert [line["result"] for line in lines(receipt, "unmeasured_experts")] == ["pass"]
    assert [line["result"] for line in lines(receipt, "vocabulary_rows")] == ["pass"]


def test_one_broken_expert_of_many_fails_by_its_number(base, probes, judge):
    receipt = judge(base, and_one_expert(1.2), probes)
    assert receipt.verdict == "fail"
    assert [line["result"] for line in lines(receipt, "content")] == ["pass", "pass"]
    worst = lines(receipt, "expert_content")[0]
    assert (worst["layer"], worst["expert"], worst["result"]) == (LAYER, EXPERT, "fail")
    assert worst["simultaneous_low"] > worst["budget"] == 0.35
    assert f"layer {LAYER} expert {EXPERT} by" in warned(receipt)["weight-outliers"]
    assert f"layer {LAYER} expert {EXPERT} content of the worst expert" in markdown.render(
        ReceiptView(receipt.body), receipt.path
    )


def test_a_broken_expert_passes_only_where_null_is_on_record(base, root, judge):
    receipt = judge(base, and_one_expert(1.2), allowing(root, "null", rewrite={"expert_content": None}))
    assert receipt.verdict == "pass"
    assert {line["result"] for line in lines(receipt, "expert_content")} == {"not-gated"}
    assert "weight-outliers" in warned(receipt)


def test_an_expert_that_no_token_reaches_leaves_the_verdict_open(unreached, root, probes, judge):
    receipt = judge(unreached, and_one_expert(1.2), probes)
    assert receipt.verdict == "inconclusive"
    (line,) = lines(receipt, "unmeasured_experts")
    assert (line["layer"], line["expert"], line["result"]) == (LAYER, EXPERT, "undetermined")
    assert "no probe token uses it" in line["reason"]
    assert receipt.body["layers"][-1]["pair"]["expert_coverage"]["unreached"] == [EXPERT]
    message = warned(receipt)["unreached-experts"]
    assert message == "1 expert was reached by no probe token and changed by 1.18 of the norm (layer 2: 5)"
    assert "layer 2 expert 5 by" in warned(receipt)["weight-outliers"]


def test_it_passes_where_the_policy_allows_it_by_name(unreached, root, judge):
    receipt = judge(unreached, and_one_expert(1.2), allowing(root, "allowed", allow=["unmeasured_experts"]))
    assert receipt.verdict == "pass"
    (line,) = lines(receipt, "unmeasured_experts")
    assert (line["result"], line["reason"]) == ("not-gated", "allowed by the policy")
    assert {"unreached-experts", "weight-outliers"} <= warned(receipt).keys()


def test_an_expert_that_no_token_reaches_may_change_like_the_others(unreached, probes, judge):
    receipt = judge(unreached, healthy, probes)
    assert receipt.verdict == "pass"
    assert "1 expert was reached by no probe token" in warned(receipt)["unreached-experts"]
    assert "weight-outliers" not in warned(receipt)


def test_the_router_row_of_an_unreached_expert_counts_as_its_own(unreached, probes, judge):
    def change(tensors):
        healthy(tensors)
        tensors[f"model.layers.{LAYER}.mlp.gate.weight"][EXPERT] *= -1

    receipt = judge(unreached, change, probes)
    (line,) = lines(receipt, "unmeasured_experts")
    assert (line["layer"], line["expert"], line["result"]) == (LAYER, EXPERT, "undetermined")
    assert "its router row changed" in line["reason"]
    assert "router row 5" in warned(receipt)["weight-outliers"]


def end(kind):
    return {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight"}[kind]


def rows_changed(kind, change):
    def both(tensors):
        healthy(tensors)
        rows = tensors[end(kind)]
        change(rows)

    return both


def set_far_out(rows):
    rows[SEEN:] = 1e30


def permute(rows):
    rows[SEEN:] = rows[SEEN:].roll(1, 0).clone()


def swap_two(rows):
    rows[[SEEN, SEEN + 1]] = rows[[SEEN + 1, SEEN]].clone()


def replace(count):
    def change(rows):
        size = rows.square().mean().sqrt()
        rows[-count:] = size * torch.randn(rows[-count:].shape, generator=torch.Generator().manual_seed(2))

    return change


def zero(rows):
    rows[-6:] = 0.0


def copy_one(rows):
    rows[-1] = rows[0].clone()


@pytest.mark.parametrize("kind", ["embedding", "head"])
@pytest.mark.parametrize(
    ("change", "verdict", "result"),
    [
        (permute, "fail", "fail"),
        (swap_two, "fail", "fail"),
        (replace(8), "inconclusive", "undetermined"),
        (zero, "inconclusive", "undetermined"),
        (replace(3), "pass", "pass"),
        (copy_one, "pass", "pass"),
    ],
)  # fmt: skip
def test_rows_of_tokens_that_no_window_holds(base, probes, judge, kind, change, verdict, result):
    receipt = judge(base, rows_changed(kind, change), probes)
    found = lines(receipt, "vocabulary_rows")
    assert (receipt.verdict, found[0]["result"]) == (verdict, result)
    assert result == "pass" or found[0]["class"] == kind
    assert f"rows of the {kind} moved far more than the others" in warned(receipt)["vocabulary-rows"]


def test_an_embedding_far_longer_than_any_of_the_base_fails(base, root, probes, judge):
    change = rows_changed("embedding", set_far_out)
    receipt = judge(base, change, probes)
    assert receipt.verdict == "fail"
    assert (
        "8 rows are over ten times as long as the longest of the base"
        in lines(receipt, "vocabulary_rows")[0]["reason"]
    )
    found = receipt.body["vocabulary"]["embedding"]
    assert found["changed"] == {"seen": SEEN, "unseen": 8}
    assert found["outlying"] == {"seen": 0, "unseen": 8}


def test_rows_may_be_anything_where_the_policy_allows_it(base, root, judge):
    receipt = judge(
        base, rows_changed("embedding", permute), allowing(root, "rows", allow=["vocabulary_rows"])
    )
    assert receipt.verdict == "pass"
    assert "vocabulary-rows" in warned(receipt)


def test_a_row_with_a_meaning_of_its_own_is_named(base, probes, judge):
    config = json.loads((base / "config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [47], "pad_token_id": 46}))
    decoder = {"47": {"content": "<|im_end|>"}, "no": {}, "45": 3}
    (base / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    receipt = judge(base, rows_changed("head", replace(2)), probes)
    assert config == json.loads((base / "config.json").read_text())
    message = warned(receipt)["vocabulary-rows"]
    assert "47 (eos, <|im_end|>)" in message
    assert "46 (pad)" in message


def test_a_tied_head_is_the_embedding(root, probes, judge):
    tied = tiny.save("cohere2_moe", root / "tied", seed=3)
    small = pairs.probe(root / "tied-probe", vocab=SEEN, documents=4, policy=POLICY)

    def change(tensors):
        swap_two(tensors["model.embed_tokens.weight"])

    receipt = judge(tied, change, small)
    assert receipt.body["vocabulary"]["head"] is None
    assert receipt.body["vocabulary"]["embedding"]["permuted"] == 2
    assert receipt.verdict == "fail"


def test_a_checkpoint_against_itself_changed_no_expert_and_no_row(unreached, tmp_path, probes):
    facts, arrays = pairs.audited(unreached, unreached, probes, dtype="float32")
    receipt = derive(facts, arrays)
    for layer in receipt["layers"]:
        found = layer["pair"]["expert_content"]
        assert (found["estimate"], found["low"], found["high"], found["exact"]) == (0.0, 0.0, 0.0, True)
        assert not arrays[f"layers.{layer['layer']}.pair.expert_content.sum"].any()
        assert set(layer["changes"]["experts"]) | set(layer["changes"]["router_rows"]) == {0.0}
    for found in receipt["vocabulary"].values():
        assert found["changed"] == found["outlying"] == {"seen": 0, "unseen": 0}


def test_what_is_said_of_experts_and_rows_follows_from_the_receipt(base, probes):
    """A verifier has neither weights nor what was derived."""
    tuned = pairs.variant(base, base.parent / "derived", and_one_expert(1.2))
    facts, arrays = pairs.audited(base, tuned, probes, dtype="float32")
    receipt = derive(facts, arrays)
    edited = copy.deepcopy(receipt)
    edited["layers"][-1]["pair"]["expert_content"]["expert"] = 0
    edited["layers"][-1]["pair"]["expert_coverage"]["unreached"] = []
    edited["warnings"] = []
    assert derive(edited, arrays) == receipt


def test_a_default_never_contradicts_the_content_budget(root):
    probe = allowing(root, "wide", rewrite={"content": 0.6})
    lock = json.loads((probe.parent / "probes.lock.json").read_text())
    assert lock["probes"]["policy"]["rewrite"]["expert_content"] == 0.6
    config = yaml.safe_load(probe.read_text())
    config["policy"]["rewrite"]["expert_content"] = 0.2
    probe.write_text(yaml.safe_dump(config))
    assert register(probe, force=True).body["probes"]["policy"]["rewrite"]["expert_content"] == 0.2
