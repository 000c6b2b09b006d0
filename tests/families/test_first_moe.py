"""DeepSeekMoE and Ling 1.5 against a float64 rewrite: transformers has no class for them."""

from __future__ import annotations

import json

import pytest
import torch

from moe_atlas.api import AuditOptions, audit
from moe_atlas.errors import InputRefused
from scripts.oracle import first_moe, tiny
from scripts.oracle.parity import by_expert, replayed, tie_free_tokens
from tests.families.test_defaults import read
from tests.replay.test_mutations import Run, mutants
from tests.support import pairs

VARIANTS = {
    "deepseek": {},
    "deepseek-renormalised": {"norm_topk_prob": True, "attention_bias": True, "num_key_value_heads": 2},
    "bailing_moe": {},
    "bailing_moe-plain": {"use_qkv_bias": False, "first_k_dense_replace": 0, "norm_topk_prob": False},
}
ROUNDING = (
    ".rope.arithmetic=", ".mixer.softmax=", "norm.kind='rms32", ".router.matmul=", ".probabilities=", ".weight_dtype=",
    ".accumulate=",
)  # fmt: skip
"""Fields that float32 cannot tell apart: how the remote code rounds was read, not run."""


def save(variant, folder, **options):
    return first_moe.save(variant.split("-")[0], folder, **VARIANTS[variant], **options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_matches_the_rewrite(variant, tmp_path):
    folder = save(variant, tmp_path / "m")
    tokens = tie_free_tokens(folder, torch.float32)
    expected = first_moe.forward(folder, tokens)
    logits, routings = replayed(*tiny.open_tiny(folder), tokens, torch.float32, "float32")
    assert routings.keys() == expected.sets.keys()
    for layer, routing in routings.items():
        ours = by_expert(routing.topk_TK, routing.weights_TK)
        theirs = by_expert(expected.sets[layer], expected.weights[layer].float())
        assert torch.equal(ours[0], theirs[0])
        assert (ours[1] - theirs[1]).abs().max() < 1e-5
    assert expected.logits.std() > 0.1
    assert (logits - expected.logits).abs().max() < 1e-5


@pytest.mark.parametrize("variant", ["deepseek", "bailing_moe"])
def test_every_field_matters(variant, tmp_path):
    folder = save(variant, tmp_path / "m")
    run = Run(folder, torch.float32, tie_free_tokens(folder, torch.float32))
    survivors = [where for where, mutant in mutants(run.blueprint.model) if not run.notices(mutant)]
    assert [where for where in survivors if not any(name in where for name in ROUNDING)] == []


@pytest.mark.parametrize("variant", ["deepseek", "bailing_moe"])
def test_a_whole_audit(variant, tmp_path):
    base = save(variant, tmp_path / "base", seed=3)
    tuned = pairs.variant(base, tmp_path / "tuned", pairs.jitter(0.2, lambda name: True))
    options = AuditOptions(dtype="float32")
    probes = pairs.probe(tmp_path / "probe", policy=pairs.SAME)
    receipts = {
        name: audit(base, side, probes, receipt=tmp_path / f"{name}.json", options=options)
        for name, side in (("same", base), ("tuned", tuned))
    }
    assert receipts["same"].verdict == "pass"
    for name, receipt in receipts.items():
        for layer in receipt.body["layers"]:
            drift = layer["pair"]["boundary_drift"]["estimate"]
            assert drift == 0.0 if name == "same" else 0.0 < drift < 1.0


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [
        ("bailing_moe", "norm_head", True),
        ("bailing_moe", "use_bias", True),
        ("bailing_moe", "score_function", "sigmoid"),
        ("bailing_moe", "router_type", "groupN"),
        ("bailing_moe", "use_qk_norm", True),
        ("bailing_moe", "n_group", 4),
        ("deepseek", "scoring_func", "sigmoid"),
        ("deepseek", "topk_method", "noaux_tc"),
        ("deepseek", "routed_scaling_factor", 2.5),
        ("deepseek", "moe_layer_freq", 2),
    ],
)
def test_what_the_first_versions_do_not_compute_is_refused(variant, key, value, tmp_path):
    folder = save(variant, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputRefused) as caught:
        tiny.open_tiny(folder)
    assert f"{key} = {value!r}" in str(caught.value)


@pytest.mark.parametrize("variant", ["deepseek", "bailing_moe"])
@pytest.mark.parametrize(
    "key", sorted(first_moe.COMMON | first_moe.CONFIGS["deepseek"] | first_moe.CONFIGS["bailing_moe"])
)
def test_without_a_class_no_key_that_moves_a_number_may_be_missing(variant, key):
    whole = first_moe.CONFIGS[variant]
    poor = {name: value for name, value in whole.items() if name != key}
    if key != "model_type":
        assert isinstance(read(poor), str) or read(poor) == read(whole)
