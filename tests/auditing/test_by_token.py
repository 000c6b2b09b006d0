"""Layers that look their experts up by token id: the table decides, so nothing competes and margins do not exist."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from moe_atlas.api import AuditOptions, audit
from moe_atlas.errors import InputRefused
from moe_atlas.geometry.assumptions import NO_COMPETITION
from moe_atlas.geometry.fields.evaluation import EMPTY, distinct
from moe_atlas.geometry.fields.single_fields import slot_weights
from moe_atlas.probes.registration import load_registered
from moe_atlas.replay.model import Replay
from scripts.oracle import tiny
from scripts.oracle.parity import compare
from tests.support import pairs

TABLE = "model.layers.0.ffn.gate.tid2eid"
ROWS = "model.layers.0.ffn.gate.weight"
EXPERT = "model.layers.0.ffn.experts.{e}.{m}.weight"
BY_TOKEN, BY_SCORE = 0, 1


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("by-token")


@pytest.fixture(scope="module")
def base(root):
    return tiny.save("deepseek_v4-by-token", root / "base", seed=3)


@pytest.fixture(scope="module")
def probes(root):
    return pairs.probe(root / "probe", documents=6, policy=pairs.SAME)


@pytest.fixture
def judged(base, probes, tmp_path):
    return lambda change: pairs.judge(base, change, probes, tmp_path)


def jittered(tensors):
    pairs.jitter(0.1, lambda name: tensors[name].is_floating_point())(tensors)


def test_margins_and_jumps_are_null_with_a_reason_and_the_rest_is_measured(judged):
    layers = judged(jittered).body["layers"]
    for key in NO_COMPETITION:
        for side in ("base", "tuned"):
            found = layers[BY_TOKEN][side][key]
            assert found["estimate"] is None
            assert found["not_applicable"] is True
            assert "looked up" in found["reason"], key
            assert layers[BY_SCORE][side][key]["estimate"] is not None, key
    facts = layers[BY_TOKEN]["base"]
    assert "looked up" in facts["set_margin_p10"]["reason"]
    assert (facts["ties"], facts["margin_undefined"]) == (0, 192)
    for key in ("overlap", "smooth_overlap", "load_entropy", "field_norm"):
        assert facts[key]["estimate"] is not None, key


def test_equal_tables_give_equal_sets_whatever_else_is_tuned(judged):
    receipt = judged(jittered)
    first, second = (receipt.body["layers"][i]["pair"] for i in (BY_TOKEN, BY_SCORE))
    assert first["boundary_drift"]["estimate"] == first["native_boundary_drift"]["estimate"] == 0
    assert first["flips"] == {"changed": 0, "inside": 0, "outside": 0}
    assert first["transition_drift"]["estimate"] > 0
    assert first["content_drift"]["estimate"] > 0
    assert second["boundary_drift"]["estimate"] > 0


def test_a_changed_table_changes_sets_and_the_router_and_is_measured_by_hand(judged, probes):
    before, after = None, None

    def change(tensors):
        nonlocal before, after
        before = tensors[TABLE].clone()
        tensors[TABLE] = tensors[TABLE].flip(0).contiguous()
        after = tensors[TABLE]

    receipt = judged(change)
    windows = load_registered(probes).windows
    tokens = torch.cat([torch.from_numpy(window.tokens).long() for window in windows])
    kept = [
        len({*one} & {*two}) for one, two in zip(before[tokens].tolist(), after[tokens].tolist(), strict=True)
    ]
    pair = receipt.body["layers"][BY_TOKEN]["pair"]
    assert pair["boundary_drift"]["estimate"] == pytest.approx(1 - sum(kept) / (3 * len(kept)))
    assert pair["flips"]["outside"] == sum(count < 3 for count in kept)
    assert pair["transition_drift"]["estimate"] == 0
    router = receipt.body["weights"]["classes"]["router"]
    assert (router["changed"], router["relative_change"]) == (1, 0.0)
    row = next(row for row in receipt.body["weights"]["tensors"] if row["name"] == TABLE)
    assert row["identical"] is False
    assert row["relative_change"] is None, "a distance between expert numbers says nothing"


def permuted(*, table):
    order = torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])

    def change(tensors):
        tensors[ROWS] = tensors[ROWS][order].contiguous()
        for m in ("w1", "w2", "w3"):
            both = [tensors[EXPERT.format(e=e, m=m)] for e in (1, 0)]
            tensors |= {EXPERT.format(e=e, m=m): tensor for e, tensor in enumerate(both)}
        if table:
            tensors[TABLE] = torch.argsort(order)[tensors[TABLE]]
        return tensors

    return change


def test_experts_that_change_places_in_the_table_too_are_the_same_model(judged):
    receipt = judged(permuted(table=True))
    assert receipt.verdict == "pass"
    assert receipt.body["identity"]["layers"][0]["assignment"] == "relabelled"
    assert receipt.body["weights"]["classes"]["router"]["changed"] == 0


def test_experts_that_change_places_behind_the_table_are_another_model(judged):
    receipt = judged(permuted(table=False))
    assert receipt.verdict != "pass"
    assert receipt.body["layers"][BY_TOKEN]["pair"]["boundary_drift"]["estimate"] > 0


def repeated(tensors):
    """Every third token id names one expert twice, every fourth one thrice."""
    tensors[TABLE][::3, 1] = tensors[TABLE][::3, 0]
    tensors[TABLE][::4] = tensors[TABLE][::4, :1]


def test_an_expert_that_a_table_names_twice_counts_twice_as_in_the_reference(base, tmp_path):
    twice = pairs.variant(base, tmp_path / "twice", repeated)
    difference = compare(twice)
    assert difference.logits < 1e-4
    assert difference.weights < 1e-5


def test_repeated_experts_are_measured_as_the_model_counts_them(base, probes, tmp_path):
    """Whichever of the two checkpoints repeats them."""
    twice = pairs.variant(base, tmp_path / "twice", repeated)
    tokens = torch.cat([torch.from_numpy(w.tokens).long() for w in load_registered(probes).windows])
    sets = [[Counter(row) for row in pairs.read(one)[TABLE][tokens].tolist()] for one in (base, twice)]
    shared = [sum((one & two).values()) for one, two in zip(*sets, strict=True)]
    options = AuditOptions(dtype="float32")
    for number, both in enumerate([(base, twice), (twice, base), (twice, twice)]):
        file = tmp_path / f"{number}.json"
        receipt = audit(*both, probes, receipt=file, force=True, options=options)
        layer = receipt.body["layers"][BY_TOKEN]
        pair, field = layer["pair"], layer["base"]["field_norm"]["estimate"]
        assert pair["perturbation_budget"]["base_norm"]["estimate"] == pytest.approx(field, rel=1e-5)
        if number == 2:
            assert receipt.verdict == "pass"
            continue
        assert pair["boundary_drift"]["estimate"] == pytest.approx(1 - sum(shared) / (3 * len(shared)))
        budget = pair["perturbation_budget"]
        assert 0 < budget["actual"]["estimate"] <= budget["bound"]["estimate"]


def test_the_weight_of_a_repeated_expert_is_that_of_all_its_places(base, tmp_path):
    spec, reader = tiny.open_tiny(pairs.variant(base, tmp_path / "twice", repeated))
    seen = []
    Replay(spec, dtype=torch.float32).forward(reader, tiny.tokens(), lambda *found: seen.append(found))
    layer, _, routing = seen[BY_TOKEN]
    tokens_T = torch.arange(len(routing.topk_TK))
    table_TP = distinct(routing.topk_TK)
    assert (table_TP == EMPTY).any()
    weights_TP = slot_weights(layer, routing, tokens_T, table_TP)
    assert torch.allclose(weights_TP.sum(-1), routing.weights_TK.sum(-1))


@pytest.mark.parametrize("row", [[0, 1, 8], [-1, 0, 1]])
def test_an_expert_that_there_is_not_is_refused(base, tmp_path, row):
    def change(tensors):
        tensors[TABLE][5] = torch.tensor(row)

    with pytest.raises(InputRefused, match=r"for token 5") as caught:
        tiny.open_tiny(pairs.variant(base, tmp_path / "odd", change))
    assert TABLE in str(caught.value)


def test_a_table_of_small_integers_is_read_alike(base, tmp_path):
    small = pairs.variant(base, tmp_path / "small", lambda tensors: {**tensors, TABLE: tensors[TABLE].int()})
    spec, _ = tiny.open_tiny(small)
    assert spec.layers[BY_TOKEN].moe.router.table == 48


def test_a_table_of_fractions_is_no_table(base, tmp_path):
    def change(tensors):
        tensors[TABLE] = tensors[TABLE].float()

    with pytest.raises(InputRefused, match="F32"):
        tiny.open_tiny(pairs.variant(base, tmp_path / "odd", change))
