"""A whole audit of every family: of a checkpoint against itself, and of a perturbed pair against transformers.

The numbers of an audit are compared with a float64 rewrite elsewhere, on some families; what is compared here, on all,
is what a family could get wrong: every window's likelihood and every expert's load in each layer, of both checkpoints.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_atlas.api import AuditOptions, audit
from moe_atlas.probes.registration import load_registered
from moe_atlas.replay import loss
from scripts.oracle import tiny
from tests.support import pairs

CASES = list({tiny.CASES[case][0]: case for case in reversed(tiny.CASES)}.values())[::-1]
"""The first case of each family."""
QUICK = ("longcat_flash", "nemotron_h", "qwen3_next", "lfm2_moe", "deepseek_v32", "gpt_oss")
GATED = ("coordinate_drift_z", "boundary_drift", "transition_drift", "content_drift")
EVERY = [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    return pairs.probe(tmp_path_factory.mktemp("families"), documents=4, policy=pairs.SAME)


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """Embedding and head pass in parts of the vocabulary, the last of them shorter."""
    monkeypatch.setattr(loss, "PART", 20)


@pytest.fixture
def judge(tmp_path, probes):
    def call(base, tuned):
        options = AuditOptions(dtype="float32")
        return audit(base, tuned, probes, receipt=tmp_path / "receipt.json", force=True, options=options)

    return call


@pytest.mark.parametrize("case", EVERY)
def test_every_family_against_itself_passes_at_exactly_zero(case, tmp_path, judge):
    folder = tiny.save(case, tmp_path / "m", seed=3)
    receipt = judge(folder, folder)
    assert receipt.body["verdict"] == "pass"
    for layer in receipt.body["layers"]:
        for key in GATED:
            found = layer["pair"][key]
            assert found["estimate"] == 0.0 or (found["estimate"] is None and found["reason"]), (key, found)


def reference(folder, probes):
    """Likelihood per window and load per layer, as transformers computes them."""
    model = tiny.load_reference(folder)
    windows = [torch.from_numpy(window.tokens).long()[None] for window in load_registered(probes).windows]
    runs = [tiny.oracle(model, tokens_WS) for tokens_WS in windows]
    losses = [
        torch.nn.functional.cross_entropy(run.logits[0, :-1], tokens[0, 1:])
        for run, tokens in zip(runs, windows, strict=True)
    ]
    return np.array(losses), {layer: [run.sets[layer] for run in runs] for layer in runs[0].sets}


@pytest.mark.parametrize("case", EVERY)
def test_every_familys_perturbed_pair_is_measured_as_transformers_computes_it(case, tmp_path, judge, probes):
    base = tiny.save(case, tmp_path / "base", seed=3)
    tuned = pairs.variant(base, tmp_path / "tuned", pairs.jitter(0.2, lambda name: "A_log" not in name))
    receipt = judge(base, tuned)
    arrays = receipt.windows()
    for side, folder in (("base", base), ("tuned", tuned)):
        losses, sets = reference(folder, probes)
        assert np.allclose(arrays[f"output.nll_{side}"], losses, atol=2e-4)
        assert sets
        for layer, chosen in sets.items():
            counts_WE = arrays[f"layers.{layer}.{side}.counts"]
            for counts_E, topk_TK in zip(counts_WE, chosen, strict=True):
                assert np.array_equal(counts_E, np.bincount(topk_TK.flatten(), minlength=len(counts_E)))
    for layer in receipt.body["layers"]:
        drift = layer["pair"]["boundary_drift"]["estimate"]
        assert 0.0 < drift < 1.0


def test_a_change_of_how_streams_mix_is_a_change_of_state(tmp_path, judge):
    base = tiny.save("deepseek_v4", tmp_path / "base", seed=3)
    tuned = pairs.variant(base, tmp_path / "tuned", pairs.jitter(0.2, lambda name: "layers.0.hc_ffn" in name))
    first, second, _ = judge(base, tuned).body["layers"]
    assert [first["exact"][key] for key in ("states", "gain", "router", "experts")] == [
        False,
        True,
        True,
        True,
    ]
    for layer in (first, second):
        assert layer["pair"]["coordinate_drift"]["estimate"] > 0.0
        assert layer["pair"]["boundary_drift"]["estimate"] == 0.0
        assert layer["pair"]["content_drift"]["estimate"] == 0.0


def test_what_joins_the_normalised_state_has_no_visible_update(tmp_path, judge):
    base = tiny.save("minimax", tmp_path / "base", seed=3)
    tuned = pairs.variant(base, tmp_path / "tuned", pairs.jitter(0.2, lambda name: "experts" in name))
    for layer in judge(base, tuned).body["layers"]:
        found = layer["pair"]["content_drift"]
        assert found["estimate"] is None
        assert "joins the normalised state" in found["reason"]
        assert layer["pair"]["coordinate_drift_z"]["estimate"] is not None
