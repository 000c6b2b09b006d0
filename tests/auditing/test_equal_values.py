"""Audits and rules speak of values: the same ones in another dtype, layout or sign of zero are the same checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_atlas.api import AuditOptions, audit, baseline
from moe_atlas.auditing import run as running
from moe_atlas.probes.settings.policy import TENSOR_CLASSES
from scripts.oracle import tiny
from tests.auditing.test_stored_formats import fp8
from tests.auditing.test_verdicts import ROUTED, fuse, swapped
from tests.support import pairs, quantise

WIDE = {"F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("values")


@pytest.fixture(scope="module")
def few(root):
    return pairs.probe(root / "few", documents=4)


def planted(tensors):
    """bfloat16 values that float16 holds, too, zeros of either sign among them."""
    for name, tensor in tensors.items():
        coarse = (tensor.float() * 256).round().clamp(-127, 127) / 256
        coarse.view(-1)[::7] = 0.0
        coarse.view(-1)[3::14] = -0.0
        tensors[name] = coarse.bfloat16()


@pytest.fixture(scope="module", params=("deepseek_v3", "qwen3_moe"))
def base(request, root):
    plain = tiny.save(request.param, root / f"{request.param}-plain", seed=3)
    return pairs.variant(plain, root / request.param, planted)


def flipped(tensors):
    for name, tensor in tensors.items():
        tensors[name] = torch.where(tensor == 0, -tensor, tensor)


def stored_as(dtype):
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def copied(base, root, form):
    """The same values, stored otherwise."""
    folder = root / f"{base.name}-{form}"
    if form == "signs":
        return pairs.variant(base, folder, flipped)
    if form == "fused F32":
        fused = pairs.variant(base, root / f"{base.name}-fused", fuse(ROUTED[base.name]))
        return pairs.variant(fused, folder, stored_as(torch.float32), shards=3)
    if form == "mixed":
        odd = lambda tensors: {n: t.float() if i % 2 else t for i, (n, t) in enumerate(tensors.items())}  # noqa: E731
        return pairs.variant(base, folder, odd)
    return pairs.variant(base, folder, stored_as(WIDE[form]))


def same_arrays(found, expected):
    price = {
        name for name in found if name.endswith("content_quantisation")
    }  # of formats that may lose something
    assert found.keys() - price == expected.keys() - price
    assert not any(found[name].any() for name in price)
    for name, values in found.items():
        assert name in price or values.tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize("form", ["signs", "F16", "F32", "F64", "fused F32", "mixed"])
@pytest.mark.parametrize("router", ["float32", "native"])
def test_a_copy_in_another_form_is_the_checkpoint_itself(base, root, few, form, router):
    copy = copied(base, root, form)
    for pair in ((base, copy), (copy, base)):
        facts, arrays = pairs.audited(*pair, few, router=router)
        expected, itself = pairs.audited(pair[0], pair[0], few, router=router)
        assert facts["identity"]["identical_checkpoints"] is True
        same_arrays(arrays, itself)
        assert [layer["exact"] for layer in facts["layers"]] == [
            layer["exact"] for layer in expected["layers"]
        ]
        base_facts, tuned_facts = facts["checkpoints"].values()
        assert base_facts["digest"] != tuned_facts["digest"]
        for key in ("values_digest", "classes"):
            assert base_facts[key] == tuned_facts[key] == expected["checkpoints"]["base"][key]
        classes = facts["weights"]["classes"].values()
        assert sum(entry["changed"] or 0 for entry in classes) == 0
        assert any(row["recast"] for row in facts["weights"]["tensors"])
        plain = replace(AuditOptions(router=router), skips=False)
        same_arrays(running.measure(*pair, few, plain)[1], arrays)


def test_a_relabelled_copy_in_another_dtype_is_exactly_zero_too(base, root, few):
    layer = ROUTED[base.name][-1]
    swap = pairs.variant(base, root / f"{base.name}-swap", swapped(layer))
    copy = pairs.variant(swap, root / f"{base.name}-swap-wide", stored_as(torch.float32))
    facts, arrays = pairs.audited(base, copy, few)
    _, expected = pairs.audited(base, swap, few)
    assert facts["identity"]["identical_checkpoints"] is True
    same_arrays(arrays, expected)
    assert not any(values.any() for name, values in arrays.items() if ".pair." in name and "drift" in name)
    own = [pairs.audited(one, None, few)[0]["checkpoints"]["base"] for one in (base, copy)]
    found = facts["checkpoints"]
    for side, alone in zip(("base", "tuned"), own, strict=True):  # of its own numbering, as it is stored
        assert (found[side]["values_digest"], found[side]["classes"]) == (
            alone["values_digest"],
            alone["classes"],
        )
    assert own[0]["values_digest"] != own[1]["values_digest"]


def test_a_decoded_copy_of_a_quantised_checkpoint_is_the_checkpoint_itself(root, few):
    settings = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    stored = tiny.save("qwen3_moe", root / "fp8", dtype=torch.bfloat16)
    quantise.rewrite(stored, fp8, settings)
    from moe_atlas.checkpoint.index import open_checkpoint
    from moe_atlas.checkpoint.reader import Reader

    reader = Reader(open_checkpoint(stored))
    decoded = {name: reader.read(name) for name in reader.checkpoint.logical}
    plain = pairs.write(
        root / "decoded", decoded, tiny.save("qwen3_moe", root / "like", dtype=torch.bfloat16)
    )
    facts, _ = pairs.audited(stored, plain, few)
    assert facts["identity"]["identical_checkpoints"] is True
    assert len({found["values_digest"] for found in facts["checkpoints"].values()}) == 1


def test_one_changed_value_changes_the_digest_and_its_own_class_alone(base, root, few):
    before = pairs.audited(base, None, few)[0]["checkpoints"]["base"]
    names = {}
    for row in pairs.audited(base, None, few)[0]["weights"]["tensors"]:
        names.setdefault((row["class"], row["layer"]), row["name"])
    for place, name in names.items():

        def change(tensors, name=name):
            tensors[name].view(-1)[-1] += 0.5

        after = pairs.audited(pairs.variant(base, root / "one", change), None, few)[0]["checkpoints"]["base"]
        assert after["values_digest"] != before["values_digest"]
        rows = zip(before["classes"], after["classes"], strict=True)
        assert [(a["class"], a["layer"]) for a, b in rows if a != b] == [place], name


@pytest.mark.parametrize("other", [None, (5, 4), (4, 4)])
def test_what_nothing_replays_is_in_a_row_of_its_own(root, few, other):
    """Alone, of another shape, or with other values: not in the checkpoint's digest, and in the row `other`."""
    base = tiny.save("deepseek_v3", root / "mtp-plain", seed=3)
    extra = {"model.layers.3.eh_proj.weight": torch.arange(16.0).reshape(4, 4)}
    first = pairs.variant(base, root / "mtp", lambda tensors: tensors | extra)
    changed = {} if other is None else {"model.layers.3.eh_proj.weight": torch.ones(other)}
    second = pairs.variant(base, root / "mtp-other", lambda tensors: tensors | changed)
    facts, _ = pairs.audited(first, second, few)
    found = facts["checkpoints"]
    assert found["base"]["values_digest"] == found["tuned"]["values_digest"]
    rows = [
        {(row["class"], row["layer"]): row["values"] for row in side["classes"]} for side in found.values()
    ]
    assert {place for place in rows[0] if rows[0][place] != rows[1].get(place)} == {("other", None)}
    for side, folder in (("base", first), ("tuned", second)):
        assert pairs.audited(folder, None, few)[0]["checkpoints"]["base"]["classes"] == found[side]["classes"]


def test_a_head_that_is_tied_or_stored_as_the_embedding_again_is_the_same(root, few):
    plain = tiny.save("qwen3_moe", root / "untied-plain", seed=4)

    def alike(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    untied = pairs.variant(plain, root / "untied", alike)
    tied = pairs.variant(
        untied, root / "tied", lambda tensors: {n: t for n, t in tensors.items() if "head" not in n}
    )
    config = (tied / "config.json").read_text()
    (tied / "config.json").write_text(
        config.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    )
    for pair in ((untied, tied), (tied, untied)):
        found = pairs.audited(*pair, few)[0]["checkpoints"]
        for key in ("values_digest", "classes"):
            assert found["base"][key] == found["tuned"][key]


def ruled(base, tuned, root, rules):
    policy = pairs.POLICY | {"weights": {"must_change": [], "must_not_change": []} | rules}
    probes = pairs.probe(root / "ruled", documents=4, policy=policy)
    receipt = audit(base, tuned, probes, receipt=root / "ruled.json", force=True)
    lines = receipt.body["predicates"]["protected_atlas_rewrite"]["evidence"]
    return {line["class"]: (line["result"], line["reason"]) for line in lines if line["gate"] == "weights"}


def test_a_lossless_copy_changes_no_class_and_satisfies_no_must_change(base, root):
    copy = copied(base, root, "F32")
    classes = list(TENSOR_CLASSES)
    for rule, allowed in (("must_not_change", "pass"), ("must_change", "fail")):
        found = ruled(base, copy, root, {rule: classes})
        assert {result for result, _ in found.values()} == {allowed, "not-applicable"}
        assert all(" 0 of " in f" {reason}" for result, reason in found.values() if result == allowed)


def test_a_cast_to_fewer_bits_is_a_change_and_no_tune(root, few):
    base = tiny.save("qwen3_moe", root / "single", seed=5)
    exact = pairs.variant(base, root / "exact", stored_as(torch.float32))
    cast = pairs.variant(exact, root / "cast", stored_as(torch.bfloat16))
    found = ruled(
        exact, cast, root, {"must_change": ["routed_expert", "head"], "must_not_change": ["attention"]}
    )
    assert found["routed_expert"][0] == found["head"][0] == found["attention"][0] == "fail"
    assert "48 more were only rounded to another dtype; layers 0–1 untouched" in found["routed_expert"][1]
    tuned = pairs.variant(exact, root / "moved", pairs.jitter(0.1, lambda name: True))
    moved = pairs.variant(tuned, root / "moved-cast", stored_as(torch.bfloat16))
    assert (
        ruled(exact, moved, root, {"must_change": ["routed_expert", "head", "norm"]})["routed_expert"][0]
        == "pass"
    )


def test_three_of_all_tensors_are_no_tune_that_landed(base, root):
    layers = ROUTED[base.name]

    def change(tensors):
        for matrix in ("gate_proj", "up_proj", "down_proj"):
            tensors[f"model.layers.{layers[0]}.mlp.experts.2.{matrix}.weight"] += 0.25

    tuned = pairs.variant(base, root / f"{base.name}-three", change)
    result, reason = ruled(base, tuned, root, {"must_change": ["routed_expert"]})["routed_expert"]
    assert (result, reason) == ("fail", f"3 of 48 routed_expert tensors changed; layer {layers[1]} untouched")
    result, reason = ruled(base, tuned, root, {"must_not_change": ["routed_expert"]})["routed_expert"]
    first = f"model.layers.{layers[0]}.mlp.experts.2.gate_proj.weight"
    assert result == "fail"
    assert reason.startswith(f"3 of 48 routed_expert tensors changed: {first}, ")


def test_one_expert_of_every_layer_is_not_enough(base, root):
    def change(tensors):
        for layer in ROUTED[base.name]:
            tensors[f"model.layers.{layer}.mlp.experts.0.up_proj.weight"] += 0.25

    tuned = pairs.variant(base, root / f"{base.name}-single", change)
    result, reason = ruled(base, tuned, root, {"must_change": ["routed_expert"]})["routed_expert"]
    assert result == "undetermined"
    assert reason.startswith("2 of 48 routed_expert tensors changed; most experts of layers ")


def test_a_resumed_copy_in_another_form_has_the_same_tensors(base, root, few, tmp_path):
    first = baseline(base, few, receipt=tmp_path / "first.json")
    for form in ("fused F32", "signs"):
        again = baseline(
            copied(base, root, form),
            few,
            receipt=tmp_path / "again.json",
            previous=tmp_path / "first.json",
            force=True,
        )
        earlier = again.body["parent"]["receipt"]
        assert earlier["same_tensors"] is True
        assert all(row["same"] for row in earlier["classes"])
        assert "resumed-changed" not in {warning["code"] for warning in again.body["warnings"]}
    layer = ROUTED[base.name][0]

    def change(tensors):
        tensors[f"model.layers.{layer}.mlp.gate.weight"] += 0.25

    other = pairs.variant(base, root / f"{base.name}-other", change)
    changed = baseline(other, few, receipt=tmp_path / "other.json", previous=tmp_path / "first.json")
    assert changed.body["parent"]["receipt"]["same_tensors"] is False
    [said] = [warning for warning in changed.body["warnings"] if warning["code"] == "resumed-changed"]
    assert said["message"].endswith(f"than in the earlier receipt: router (1 layer: {layer})")
    assert (
        first.body["checkpoints"]["base"]["values_digest"]
        == again.body["checkpoints"]["base"]["values_digest"]
    )


def test_an_audit_of_a_wider_copy_says_so(base, root, few, tmp_path):
    receipt = audit(base, copied(base, root, "F32"), few, receipt=tmp_path / "receipt.json")
    [said] = [warning for warning in receipt.body["warnings"] if warning["code"] == "values-recast"]
    count = len(receipt.body["weights"]["tensors"])
    assert said["message"].startswith(
        f"{count} of {count} tensors of the tuned checkpoint hold the base's values"
    )
    assert np.isfinite(receipt.windows()["output.kl"]).all()
