"""Embedding and head, read in parts of the vocabulary: neither results nor memory depend on the size of the parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from moe_atlas.auditing import embedding_and_head
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.errors import InputRefused
from moe_atlas.replay import loss
from moe_atlas.replay.model import Replay
from scripts.oracle import tiny
from tests.support import pairs

VOCAB = 48
CASES = ("olmoe", "granitemoe", "phimoe", "cohere2_moe", "deepseek_v4", "ernie4_5_moe")
"""Plain; scaled embedding and divided logits; a bias; tied and scaled; streams; tied with a bias."""
EVIDENCE = ("layers", "weights", "identity", "vocabulary", "controls")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("ends")


@pytest.fixture(scope="module")
def probes(root):
    """Windows of 40 tokens."""
    return pairs.probe(root / "probe", documents=4, length=40)


@pytest.fixture(scope="module", params=CASES)
def base(request, root):
    return tiny.save(request.param, root / request.param, seed=3)


def tuned(base, name, change):
    folder = base.parent / f"{base.name}-{name}"
    return folder if folder.exists() else pairs.variant(base, folder, change)


def in_parts(part, base, tuned, probes, monkeypatch, positions=512, **options):
    monkeypatch.setattr(loss, "PART", part)
    monkeypatch.setattr(loss, "POSITIONS", positions)
    return pairs.audited(base, tuned, probes, dtype="float32", **options)


def read_bytes(facts):
    return [side["bytes_read"] for side in facts["checkpoints"].values()]


@pytest.mark.parametrize("part", [13, 20, 47])
def test_parts_of_the_vocabulary_say_what_the_whole_says(base, probes, monkeypatch, part):
    moved = tuned(base, "moved", pairs.jitter(0.2, lambda name: True))
    facts, arrays = in_parts(part, base, moved, probes, monkeypatch, positions=9)
    whole, expected = in_parts(VOCAB, base, moved, probes, monkeypatch)
    assert read_bytes(facts) == read_bytes(whole), "no byte is read again for its hash"
    assert [facts[key] for key in EVIDENCE] == [whole[key] for key in EVIDENCE]
    assert arrays.keys() == expected.keys()
    for name, values in arrays.items():
        if name.startswith("output."):  # products of another shape
            assert np.allclose(values, expected[name], rtol=0, atol=1e-6), name
        else:
            assert np.array_equal(values, expected[name], equal_nan=True), name


def last_row(kind):
    """Move one value in the last part of the embedding or of the head."""

    def change(tensors):
        name = next(name for name in tensors if kind in name and tensors[name].shape[0] == VOCAB)
        tensors[name][VOCAB - 1, 0] += 1

    return change


@pytest.mark.parametrize("end", ["embed", "lm_head"])
def test_what_is_the_same_up_to_the_last_row_is_shared_up_to_it(root, probes, monkeypatch, end):
    base = tiny.save("olmoe", root / "shared", seed=3)
    moved = tuned(base, end, last_row(end))
    calls = counted(monkeypatch)
    facts, arrays = in_parts(20, base, moved, probes, monkeypatch)
    shared = len(calls)
    calls.clear()
    plain, expected = in_parts(20, base, moved, probes, monkeypatch, skips=False)
    assert [facts[key] for key in EVIDENCE] == [plain[key] for key in EVIDENCE]
    for name, values in arrays.items():
        assert np.array_equal(values, expected[name], equal_nan=True), name
    assert (arrays["output.kl"] > 0).all() if end == "lm_head" else (arrays["output.kl"] >= 0).all()
    windows, parts = len(arrays["output.kl"]), 3
    assert len(calls) == 2 * windows * parts
    assert shared == (windows * (parts + 1) if end == "lm_head" else len(calls))


@pytest.mark.parametrize("beside", ["model.norm.weight", "lm_head.bias"])
def test_heads_are_not_the_same_where_what_stands_beside_them_is_not(root, probes, monkeypatch, beside):
    base = tiny.save("phimoe", root / "beside", seed=3)
    moved = tuned(base, beside, pairs.jitter(0.2, lambda name: name == beside))
    _, arrays = in_parts(20, base, moved, probes, monkeypatch)
    _, expected = in_parts(20, base, moved, probes, monkeypatch, skips=False)
    assert (arrays["output.kl"] > 0).all()
    for name, values in arrays.items():
        assert np.array_equal(values, expected[name], equal_nan=True), name


def test_an_audit_against_itself_multiplies_one_head(base, probes, monkeypatch):
    calls = counted(monkeypatch)
    _, arrays = in_parts(20, base, base, probes, monkeypatch)
    assert len(calls) == 3 * len(arrays["output.kl"])
    assert not arrays["output.kl"].any()


def counted(monkeypatch):
    """Products with a part of a head."""
    calls, logits = [], Replay.logits

    def counting(self, w, hidden_TD):
        calls.append(len(hidden_TD))
        return logits(self, w, hidden_TD)

    monkeypatch.setattr(Replay, "logits", counting)
    return calls


@pytest.mark.parametrize("case", ["olmoe", "cohere2_moe"])
def test_what_is_held_does_not_grow_with_the_vocabulary(root, probes, monkeypatch, case):
    """The largest piece of memory that is read into, and how many parts of an embedding or head are alive at once."""
    most = {}
    for vocab in (VOCAB, 40 * VOCAB):
        folder = tiny.save(case, root / f"{case}-{vocab}", seed=3, vocab_size=vocab)
        moved = tuned(folder, "moved", pairs.jitter(0.2, lambda name: True))
        sizes, alive = watched(monkeypatch)
        in_parts(16, folder, moved, probes, monkeypatch)
        assert (
            max(alive) <= 2 * 2
        )  # of each checkpoint the part at hand and the next, where that was fast enough
        most[vocab] = max(sizes)
        monkeypatch.undo()
    assert most[VOCAB] == most[40 * VOCAB]


def watched(monkeypatch):
    """Sizes of what is read into; parts of the vocabulary read and not yet given back, at every reading."""
    sizes, alive, parts = [], [], []
    memory, rows, recycle = Reader._memory, Reader.read, Reader.recycle

    def asked(self, nbytes):
        sizes.append(nbytes)
        return memory(self, nbytes)

    def reading(self, name, index=None, some=None):
        tensor = rows(self, name, index, some)
        if some is not None:
            parts.append(tensor.data_ptr())
            alive.append(len(parts))
        return tensor

    def recycling(self, tensors):
        tensors = list(tensors)
        parts[:] = [place for place in parts if place not in {tensor.data_ptr() for tensor in tensors}]
        recycle(self, tensors)

    monkeypatch.setattr(Reader, "_memory", asked)
    monkeypatch.setattr(Reader, "read", reading)
    monkeypatch.setattr(Reader, "recycle", recycling)
    return sizes, alive


def test_states_are_let_go_of_when_the_head_is_reached(root, probes, monkeypatch):
    base = tiny.save("olmoe", root / "freed", seed=3)
    held, multiply = [], embedding_and_head.multiply

    def multiplying(sides, *rest, **options):
        held.append(sum(state.numel() for side in sides for state in side.states))
        multiply(sides, *rest, **options)

    monkeypatch.setattr(embedding_and_head, "multiply", multiplying)
    in_parts(16, base, None, probes, monkeypatch)
    assert held == [0, 0, 0]


@pytest.mark.parametrize("end", ["embed", "lm_head"])
def test_what_is_not_finite_is_found_in_whatever_part_it_is(root, probes, monkeypatch, end):
    base = tiny.save("olmoe", root / f"nonfinite-{end}", seed=3)

    def spoil(tensors):
        name = next(name for name in tensors if end in name)
        tensors[name][VOCAB - 1, 3] = torch.nan

    spoiled = pairs.variant(base, root / f"spoiled-{end}", spoil)
    facts, _ = in_parts(20, base, spoiled, probes, monkeypatch)
    kind = "embedding" if end == "embed" else "head"
    assert facts["weights"]["classes"][kind]["nonfinite"] == {"base": 0, "tuned": 1}
    with pytest.raises(Exception, match="E_NONFINITE"):
        in_parts(20, spoiled, base, probes, monkeypatch)


TIED = "qwen3_moe-mixed-layers"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def apart(base, name, change, *, tied=False):
    """A tied checkpoint with a head of its own, which the configuration still calls tied or does not."""

    def add(tensors):
        tensors[HEAD] = change(tensors[EMBEDDING].clone())

    folder = pairs.variant(base, base.parent / f"{base.name}-{name}", add)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    return folder


def rows_of(facts, kind):
    return [(row["name"], row["identical"]) for row in facts["weights"]["tensors"] if row["class"] == kind]


@pytest.mark.parametrize("swapped", [False, True], ids=["tied first", "apart first"])
@pytest.mark.parametrize("tied", [False, True], ids=["called untied", "called tied"])
def test_a_head_stored_apart_that_equals_the_embedding_changes_nothing(
    root, probes, monkeypatch, swapped, tied
):
    base = tiny.save(TIED, root / f"tied-{swapped}-{tied}", seed=3)
    pair = [base, apart(base, "equal", lambda head: head, tied=tied)]
    facts, arrays = in_parts(20, *(pair[::-1] if swapped else pair), probes, monkeypatch)
    assert rows_of(facts, "head") == [(HEAD, True)]
    assert facts["identity"]["identical_checkpoints"] is True
    assert facts["controls"]["parameter_distance"] == 0.0
    assert all(not side["skipped"] for side in facts["checkpoints"].values())
    assert not arrays["output.kl"].any()


@pytest.mark.parametrize("swapped", [False, True], ids=["tied first", "apart first"])
def test_a_head_stored_apart_that_differs_is_in_the_ledger_on_either_side(root, probes, monkeypatch, swapped):
    base = tiny.save(TIED, root / f"differs-{swapped}", seed=3)
    pair = [base, apart(base, "flipped", lambda head: head.flip(0).contiguous())]
    facts, arrays = in_parts(20, *(pair[::-1] if swapped else pair), probes, monkeypatch)
    assert rows_of(facts, "head") == [(HEAD, False)]
    assert rows_of(facts, "embedding") == [(EMBEDDING, True)]
    assert facts["identity"]["identical_checkpoints"] is False
    assert (arrays["output.kl"] > 0).all()


def test_a_pair_of_which_one_has_a_bias_behind_its_head_is_refused(root, probes):
    base = tiny.save("phimoe", root / "biased", seed=3)
    other = pairs.variant(
        base, root / "unbiased", lambda t: {k: v for k, v in t.items() if k != "lm_head.bias"}
    )
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"lm_head_bias": False}))
    with pytest.raises(InputRefused, match="E_PAIR .* tensors behind the layers"):
        pairs.audited(base, other, probes)
