"""Audits of quantised checkpoints: against themselves, and of a pair that is stored in two formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.quantised.decode import round_trip
from moe_atlas.checkpoint.quantised.encoding import Encoding
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.replay import loss
from scripts.oracle import tiny
from tests.checkpoint.test_quantised import fp8_model, gpt_oss
from tests.support import pairs, quantise

CHANNELS = ("coordinate_drift_z", "boundary_drift", "transition_drift", "content_drift")


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    return pairs.probe(tmp_path_factory.mktemp("formats"))


def channel(arrays, name):
    found = [values for key, values in arrays.items() if key.endswith(f".pair.{name}")]
    return np.concatenate(found) if found else None


@pytest.mark.parametrize("build", [fp8_model, gpt_oss])
def test_a_quantised_checkpoint_against_itself_is_exactly_zero(tmp_path, probes, build):
    folder = build(tmp_path / "m")
    facts, arrays = pairs.audited(folder, folder, probes)
    assert facts["identity"]["identical_checkpoints"] is True
    assert all(not channel(arrays, name).any() for name in CHANNELS)
    assert channel(arrays, "content_quantisation") is None, (
        "both are stored alike: there is nothing to tell apart"
    )
    assert sum(form["tensors"] for form in facts["checkpoints"]["base"]["quantised"]) > 0


def test_a_quantised_vocabulary_in_parts_is_the_one_that_it_decodes_to(tmp_path, probes, monkeypatch):
    """Blocks of 16 rows, parts of 20."""
    monkeypatch.setattr(loss, "PART", 20)

    def ends(name, tensor):
        if "embed_tokens" not in name and "lm_head" not in name:
            return None
        values, scales = quantise.fp8_blocks(tensor, 16)
        return {name: values, f"{name}_scale_inv": scales}

    settings = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    stored = quantise.rewrite(tiny.save("qwen3_moe", tmp_path / "stored"), ends, settings)
    reader = Reader(open_checkpoint(stored))
    assert {"lm_head.weight", "model.embed_tokens.weight"} == reader.checkpoint.encoded.keys()
    decoded = {name: reader.read(name).float() for name in reader.checkpoint.logical}
    plain = pairs.write(tmp_path / "plain", decoded, tiny.save("qwen3_moe", tmp_path / "like"))
    found, expected = (pairs.audited(one, None, probes, dtype="float32") for one in (stored, plain))
    assert found[1].keys() == expected[1].keys()
    for name, values in found[1].items():
        assert np.array_equal(values, expected[1][name], equal_nan=True), name
    assert found[0]["weights"] == expected[0]["weights"]


def test_untuned_but_quantised_shows_as_quantisation_and_nothing_else(tmp_path, probes):
    base = tiny.save("deepseek_v3", tmp_path / "base", dtype=torch.bfloat16)
    tuned = fp8_model(tmp_path / "tuned")
    facts, arrays = pairs.audited(base, tuned, probes, dtype="float32")
    drift, price = channel(arrays, "content_drift"), channel(arrays, "content_quantisation")
    assert (drift > 0.005).all()
    assert np.allclose(drift, price, rtol=0.02), "the test rounds as plainly as the estimate does"
    assert facts["checkpoints"]["base"]["quantised"] == []


def test_a_tune_beyond_the_format_shows_above_it(tmp_path, probes):
    base = tiny.save("deepseek_v3", tmp_path / "base", dtype=torch.bfloat16)
    tuned = pairs.variant(base, tmp_path / "plain", pairs.jitter(0.3, lambda name: ".experts." in name))
    quantise.rewrite(
        tuned, lambda name, tensor: fp8(name, tensor), {"quant_method": "fp8", "weight_block_size": [16, 16]}
    )
    _, arrays = pairs.audited(base, tuned, probes)
    assert (channel(arrays, "content_drift") > 3 * channel(arrays, "content_quantisation")).all()


def fp8(name, tensor):
    if not quantise.is_projection(name, tensor):
        return None
    values, scales = quantise.fp8_blocks(tensor, 16)
    return {name: values, f"{name}_scale_inv": scales}


def test_plain_rounding_is_what_the_writer_of_a_test_checkpoint_does():
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    values, scales = quantise.fp8_blocks(weight, 16)
    from moe_atlas.checkpoint.quantised import fp8 as form

    assert torch.equal(round_trip(Encoding("fp8", (16, 16)), weight), form.decode(values, scales, (16, 16)))
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    from moe_atlas.checkpoint.quantised import fp4

    ours = round_trip(Encoding("mxfp4", (1, 32), 4), weight)
    theirs = fp4.decode_mx(*quantise.mxfp4(weight)).float()
    assert torch.equal(ours, theirs)
