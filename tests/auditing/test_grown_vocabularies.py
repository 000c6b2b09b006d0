"""Embedding and head with rows that one checkpoint alone has: compared on the ids that both have, judged as served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moe_atlas.api import AuditOptions, audit, baseline
from moe_atlas.attestation.statement import attest
from moe_atlas.cli import run
from moe_atlas.errors import InputRefused
from moe_atlas.probes.registration import load_registered
from moe_atlas.receipt.verify import verify
from moe_atlas.replay import loss
from moe_atlas.report.formats import markdown
from moe_atlas.text import shown
from moe_atlas.views.receipt import ReceiptView
from scripts.oracle import tiny
from tests.support import pairs

VOCAB, MORE = 48, 5
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CASES = ("olmoe", "phimoe", "qwen3_moe-mixed-layers", "ernie4_5_moe", "granitemoe")
"""Plain; a bias behind the head; tied; tied with a bias; divided logits."""
LIGHT = pairs.jitter(1e-2, lambda name: "norm" not in name)
LAX = {
    "policy": pairs.POLICY | {"damage": {"nll": 0.5, "kl": 1.0, "document_nll": 2.0, "document_share": 0.5}}
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("grown")


@pytest.fixture(scope="module")
def probes(root):
    return pairs.probe(root / "probe", documents=4, length=24)


@pytest.fixture(scope="module")
def olmoe(root):
    return tiny.save("olmoe", root / "olmoe", seed=3)


def grow(
    folder: Path, name: str, rows: int = MORE, *, change=LIGHT, spoil=None, vocab_size: int | None = None
) -> Path:
    """A tune of a checkpoint with so many more rows in every table over the vocabulary (fewer: cut).

    `spoil` takes name and appended rows; `vocab_size` is what config.json says, the rows by default.
    """
    made = folder.parent / f"{folder.name}-{name}"
    generator = torch.Generator().manual_seed(5)

    def resize(tensors):
        change(tensors)
        for key, tensor in tensors.items():
            if tensor.shape[:1] != (VOCAB,):
                continue
            added = torch.randn(max(rows, 0), *tensor.shape[1:], generator=generator) * tensor.std()
            if spoil is not None:
                spoil(key, added)
            tensors[key] = torch.cat([tensor[: VOCAB + min(rows, 0)], added.to(tensor.dtype)]).contiguous()

    pairs.variant(folder, made, resize)
    said = VOCAB + rows if vocab_size is None else vocab_size
    config = json.loads((made / "config.json").read_text()) | {"vocab_size": said}
    (made / "config.json").write_text(json.dumps(config))
    return made


def evidence(result):
    return result.body["predicates"]["protected_atlas_rewrite"]["evidence"]


def expected(folders, probes):
    """The output's means by window from transformers' own logits, in float64 and whole rows."""
    found = {"nll_base": [], "nll_tuned": [], "kl": [], "top1_agreement": []}
    models = [tiny.load_reference(folder) for folder in folders]
    for window in load_registered(probes, None).windows:
        tokens_WS = torch.from_numpy(window.tokens.astype(np.int64))[None]
        base_PV, tuned_PV = (tiny.oracle(model, tokens_WS).logits[0, :-1].double() for model in models)
        for side, logits_PV in (("base", base_PV), ("tuned", tuned_PV)):
            log_PV = logits_PV.log_softmax(-1)
            found[f"nll_{side}"].append(-log_PV.gather(1, tokens_WS[0, 1:, None]).mean().item())
        shared = min(base_PV.shape[1], tuned_PV.shape[1])
        log_PS = base_PV[:, :shared].log_softmax(-1)
        shift_PS = log_PS.exp() * (log_PS - tuned_PV.log_softmax(-1)[:, :shared])
        found["kl"].append(shift_PS.sum(-1).mean().item())
        found["top1_agreement"].append((base_PV.argmax(-1) == tuned_PV.argmax(-1)).double().mean().item())
    return found


@pytest.mark.parametrize("part", [13, 20, 4096])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("swapped", [False, True], ids=["grown", "shrunk"])
def test_the_output_is_that_of_the_reference(root, probes, monkeypatch, case, part, swapped):
    monkeypatch.setattr(loss, "PART", part)
    base = root / case if (root / case).exists() else tiny.save(case, root / case, seed=3)
    tuned = grow(base, "oracle", change=pairs.jitter(0.1, lambda name: True))
    pair = [tuned, base] if swapped else [base, tuned]
    facts, arrays = pairs.audited(*pair, probes, dtype="float32")
    for key, values in expected(pair, probes).items():
        assert np.allclose(arrays[f"output.{key}"], values, rtol=0, atol=2e-5), key
    bytes_read = [side["bytes_read"] for side in facts["checkpoints"].values()]
    stored = [side["bytes"] for side in facts["checkpoints"].values()]
    tied = "lm_head.weight" not in pairs.read(base)
    assert all(read > size if tied else read == size for read, size in zip(bytes_read, stored, strict=True))


def test_a_table_that_transformers_resized_is_read(root, probes, olmoe):
    model = tiny.load_reference(olmoe)
    model.resize_token_embeddings(VOCAB + MORE, pad_to_multiple_of=32, mean_resizing=False)
    model.save_pretrained(root / "resized")
    facts, arrays = pairs.audited(olmoe, root / "resized", probes, dtype="float32")
    assert facts["checkpoints"]["tuned"]["vocabulary"] == 64
    assert facts["vocabulary"]["head"]["extra"]["rows"] == 16
    for key, values in expected([olmoe, root / "resized"], probes).items():
        assert np.allclose(arrays[f"output.{key}"], values, rtol=0, atol=2e-5), key


def test_a_grown_checkpoint_against_itself_is_exactly_nothing(probes, olmoe):
    grown = grow(olmoe, "itself")
    facts, arrays = pairs.audited(grown, grown, probes, dtype="float32")
    assert facts["identity"]["identical_checkpoints"] is True
    assert "extra" not in facts["vocabulary"]["head"]
    assert not arrays["output.kl"].any()
    assert np.array_equal(arrays["output.nll_base"], arrays["output.nll_tuned"])


def test_appended_rows_alone_leave_states_and_shared_rows_exactly_as_they_were(probes, olmoe):
    grown = grow(olmoe, "appended", change=lambda tensors: None)
    facts, arrays = pairs.audited(olmoe, grown, probes, dtype="float32")
    assert facts["identity"]["identical_checkpoints"] is False, "what is served is another softmax"
    assert facts["identity"]["identical_replayed"] is False
    assert all(row["identical"] for row in facts["weights"]["tensors"])
    assert all(layer["exact"]["states"] for layer in facts["layers"])
    assert not any(arrays[name].any() for name in arrays if name.endswith("pair.boundary_drift"))
    taken = arrays["output.nll_tuned"] - arrays["output.nll_base"]
    assert (taken > 0).all()
    assert np.allclose(arrays["output.kl"], taken, atol=1e-6), "all that moved is the share of the new ids"


STORED = {
    "float32": lambda tensor: tensor,
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "shared rows that bfloat16 holds, others that it does not": lambda tensor: tensor.bfloat16().float(),
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("case", ["olmoe", "phimoe"])
def test_digests_of_values_are_those_that_each_checkpoint_has_alone(root, probes, case, stored, swapped):
    kept, made = STORED[stored], tiny.save(case, root / f"digests-{case}", seed=3)
    base = pairs.variant(made, root / f"cast-{case}", lambda t: {n: kept(x) for n, x in t.items()})
    pair = [base, grow(base, "digest", change=lambda tensors: None)]
    facts, _ = pairs.audited(*(pair[::-1] if swapped else pair), probes, dtype="float32")
    alone = [
        pairs.audited(folder, None, probes, dtype="float32")[0]["checkpoints"]["base"] for folder in pair
    ]
    found = [facts["checkpoints"][side] for side in (("tuned", "base") if swapped else ("base", "tuned"))]
    for one, other in zip(found, alone, strict=True):
        assert one["values_digest"] == other["values_digest"]
        assert one["classes"] == other["classes"]
        assert one["digest"] == other["digest"]
    assert found[0]["values_digest"] != found[1]["values_digest"]


def test_extra_rows_are_counted_and_named(root, olmoe):
    lax = pairs.probe(root / "lax", documents=40, **LAX)

    def some_zero(name, rows):
        rows[1:3] = 0.0

    grown = grow(olmoe, "named", spoil=some_zero)
    added = {"48": {"content": "<|im_start|>"}, "52": {"content": "<|im_end|>"}}
    (grown / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    result = audit(olmoe, grown, lax, receipt=root / "named.json", options=AuditOptions(dtype="float32"))
    for end in ("embedding", "head"):
        extra = result.body["vocabulary"][end]["extra"]
        assert {key: extra[key] for key in ("side", "first", "rows", "zero", "nonfinite", "far_longer")} == {
            "side": "tuned", "first": 48, "rows": 5, "zero": 2, "nonfinite": 0, "far_longer": 0,
        }  # fmt: skip
        assert [row["name"] for row in extra["named"]] == ["<|im_start|>", None, None, None, "<|im_end|>"]
        norms = [row["norm"] for row in extra["named"]]
        assert norms == pytest.approx(
            pairs.read(grown)[EMBEDDING if end == "embedding" else HEAD][48:].norm(dim=1)
        )
    said = [
        warning["message"] for warning in result.body["warnings"] if warning["code"] == "rows-of-one-side"
    ]
    assert said == [
        "the tuned checkpoint alone has 5 rows of embedding and head, ids 48 to 52, named 48 (<|im_start|>), "
        "52 (<|im_end|>): only ids below 48 are compared; 2 of the embedding are zero; 2 of the head are zero"
    ]
    assert "rows-of-one-side" in markdown.render(ReceiptView(result.body), root / "named.json")
    assert not verify(root / "named.json", checkpoint=grown).mismatches
    result.report(root / "named.html")
    assert "in the tuned checkpoint alone, from id 48 on" in (root / "named.html").read_text()


def test_garbage_that_takes_probability_is_seen(root, olmoe):
    def loud(name, rows):
        if name == HEAD:
            rows *= 6

    strict = pairs.probe(root / "strict", documents=40)
    loud_tune = grow(olmoe, "garbage", spoil=loud)
    result = audit(
        olmoe, loud_tune, strict, receipt=root / "garbage.json", options=AuditOptions(dtype="float32")
    )
    assert result.verdict == "fail"
    assert result.body["predicates"]["base_domain_damage"]["outcome"] == "damaged"


def test_a_row_far_longer_than_any_fails_though_no_token_reaches_it(root, olmoe):
    lax = pairs.probe(root / "far", documents=40, **LAX)

    def far(name, rows):
        if name == EMBEDDING:
            rows[2] *= 1e6

    result = audit(olmoe, grow(olmoe, "far", spoil=far), lax, receipt=root / "far.json",
                   options=AuditOptions(dtype="float32"))  # fmt: skip
    assert result.verdict == "fail"
    gates = [line for line in evidence(result) if line["result"] == "fail"]
    assert [gate["gate"] for gate in gates] == ["vocabulary_rows"]
    assert "1 of the 5 rows that the tuned checkpoint alone has, from id 48 on" in gates[0]["reason"]


def test_a_nan_in_a_row_that_no_token_reaches_fails_and_in_the_base_is_refused(root, olmoe):
    lax = pairs.probe(root / "nan", documents=40, **LAX)

    def broken(name, rows):
        if name == EMBEDDING:
            rows[4, 0] = torch.nan

    spoiled = grow(olmoe, "nan", spoil=broken)
    result = audit(olmoe, spoiled, lax, receipt=root / "nan.json", options=AuditOptions(dtype="float32"))
    assert result.verdict == "fail"
    assert result.body["weights"]["classes"]["embedding"]["nonfinite"] == {"base": 0, "tuned": 1}
    with pytest.raises(InputRefused, match="E_NONFINITE"):
        audit(spoiled, olmoe, lax, receipt=root / "nan2.json", options=AuditOptions(dtype="float32"))


@pytest.mark.parametrize("name", ["embedding", "head"])
def test_a_class_that_must_not_change_may_not_grow(root, olmoe, name):
    weights = {"must_not_change": [name], "must_change": []}
    rule = pairs.probe(root / f"rule-{name}", documents=40, policy=LAX["policy"] | {"weights": weights})
    grown = grow(olmoe, "rule", change=lambda tensors: None)
    result = audit(
        olmoe, grown, rule, receipt=root / f"rule-{name}.json", options=AuditOptions(dtype="float32")
    )
    gates = [line for line in evidence(result) if line["gate"] == "weights"]
    assert [(gate["result"], gate["reason"]) for gate in gates] == [
        ("fail", f"5 rows of the {name} are in the tuned alone")
    ]


def test_more_rows_than_the_configuration_says_are_read_and_warned_about(root, probes, olmoe):
    padded = grow(olmoe, "padded", vocab_size=VOCAB)
    facts, arrays = pairs.audited(olmoe, padded, probes, dtype="float32")
    served = grow(olmoe, "served")
    _, whole = pairs.audited(olmoe, served, probes, dtype="float32")
    assert np.array_equal(arrays["output.nll_tuned"], whole["output.nll_tuned"])
    assert facts["checkpoints"]["tuned"]["vocabulary"] == VOCAB + MORE
    result = baseline(padded, probes, receipt=root / "padded.json", options=AuditOptions(dtype="float32"))
    said = [
        warning["message"] for warning in result.body["warnings"] if warning["code"] == "rows-beyond-config"
    ]
    assert said[0].startswith(
        "config.json of the base checkpoint says vocab_size 48, its embedding stores 53 rows"
    )


@pytest.mark.parametrize("case", ["olmoe", "qwen3_moe-mixed-layers"])
def test_fewer_rows_than_the_configuration_says_are_refused(root, case):
    base = tiny.save(case, root / f"few-{case}", seed=3)
    with pytest.raises(InputRefused, match=r"expected shape \[48, 32\], found \[45, 32\]"):
        tiny.open_tiny(grow(base, "cut", -3, vocab_size=VOCAB))


@pytest.mark.parametrize("forgotten", [EMBEDDING, HEAD])
def test_one_end_that_did_not_grow_with_the_other_is_refused(root, olmoe, forgotten):
    grown = grow(olmoe, "forgotten")
    tensors = pairs.read(grown)
    tensors[forgotten] = tensors[forgotten][:VOCAB].contiguous()
    save_file(tensors, grown / "model.safetensors")
    with pytest.raises(InputRefused, match=r"E_FAMILY .*expected shape"):
        tiny.open_tiny(grown)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_probe_with_an_id_that_one_checkpoint_lacks_is_refused(root, olmoe, swapped):
    beyond = pairs.probe(root / f"beyond-{swapped}", documents=4, vocab=VOCAB + MORE)
    rows = (root / f"beyond-{swapped}" / "prose.jsonl").read_text().splitlines()
    guilty = [row["id"] for row in map(json.loads, rows) if max(row["tokens"]) >= VOCAB]
    pair = [olmoe, grow(olmoe, "beyond")]
    with pytest.raises(InputRefused) as caught:
        pairs.audited(*(pair[::-1] if swapped else pair), beyond)
    assert caught.value.code == "E_PROBE_TOKENS"
    assert f"document {guilty[0]} holds token id" in caught.value.problem
    assert f"{shown(str(olmoe))} has ids 0 to 47 only" in caught.value.problem


def test_a_receipt_of_a_grown_pair_is_verified_and_attested(root, olmoe):
    lax = pairs.probe(root / "attested", documents=40, **LAX)
    grown = grow(olmoe, "attested")
    result = audit(olmoe, grown, lax, receipt=root / "attested.json", options=AuditOptions(dtype="float32"))
    assert result.verdict == "pass"
    assert run(["verify", str(root / "attested.json"), "--checkpoint", str(grown)]) == 0
    assert run(["plan", str(olmoe), str(grown), "--probe", str(lax)]) == 0
    assert attest(root / "attested.json", grown).statement


def test_added_tokens_leave_the_probe_as_it_is_numbered_or_are_refused(root):
    from tests.auditing import test_tokenizer as letters

    base = tiny.save("olmoe", root / "letters", seed=3)
    probes = letters.probe(root / "letters-probe", letters=letters.LETTERS[:20])
    (base / "tokenizer.json").write_text(letters.tokenizer())
    grown = grow(base, "letters")
    (grown / "tokenizer.json").write_text(letters.tokenizer(extra=["<|im_start|>"]))
    facts, _ = pairs.audited(base, grown, probes, dtype="float32")
    assert facts["checkpoints"]["tuned"]["tokenizer"]["result"] == "same-ids"
    (grown / "tokenizer.json").write_text(letters.tokenizer(extra=["ab"]))
    with pytest.raises(InputRefused, match="E_PROBE_TOKENIZER"):
        pairs.audited(base, grown, probes, dtype="float32")


def test_a_killed_audit_of_a_grown_pair_goes_on_to_the_same_numbers(root, olmoe, probes, monkeypatch):
    from moe_atlas.auditing import embedding_and_head

    grown, options = grow(olmoe, "killed"), AuditOptions(dtype="float32")
    whole = audit(olmoe, grown, probes, receipt=root / "whole.json", options=options)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedding_and_head, "outputs", stop)
        with pytest.raises(KeyboardInterrupt):
            audit(olmoe, grown, probes, receipt=root / "again.json", resume=True, options=options)
    again = audit(olmoe, grown, probes, receipt=root / "again.json", resume=True, options=options)
    for key in ("vocabulary", "domains", "layers", "weights"):
        assert again.body[key] == whole.body[key]
