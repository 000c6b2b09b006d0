"""The demo's pieces on a tiny model: the text is held out, training trains, nothing is made twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scripts.demo import __main__ as demo
from scripts.demo import stages
from scripts.demo.batches import IGNORED, Text, item_batch
from scripts.demo.corpus import load_corpus
from scripts.demo.model import Model, Shape
from scripts.demo.place import Place
from scripts.demo.recipes import LIGHT, Recipes
from scripts.demo.task import load_items, style_of
from scripts.demo.train import BaseRecipe, load_per_expert, train_base

SMALL = Shape(
    hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
    q_lora_rank=16, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=8,
    num_experts_per_tok=2,
)  # fmt: skip
QUICK = replace(LIGHT, steps=2, items=4, replay=2)


def test_no_held_out_document_is_trained_on_or_copied_in_what_is():
    corpus = load_corpus()
    trained = [document for documents in corpus.train.values() for document in documents]
    known = {line.strip() for document in trained for line in document.text.splitlines()}
    for documents in corpus.held_out.values():
        assert len(documents) >= 120
        assert not {document.name for document in documents} & {document.name for document in trained}
        for document in documents:
            lines = {line.strip() for line in document.text.splitlines() if len(line.strip()) >= 60}
            assert len(lines & known) <= max(1, 0.05 * len(lines)), document.name


def test_held_out_items_are_new_and_every_style_is_as_frequent():
    train, held_out = load_items(load_corpus())
    assert not {item.prompt for item in train} & {item.prompt for item in held_out}
    counts = {}
    for item in held_out:
        counts[item.completion] = counts.get(item.completion, 0) + 1
    assert counts == {f"{style}\n": 24 for style in ("private", "constant", "snake", "Pascal", "camel")}


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("_hidden", "private"), ("MAX_SIZE", "constant"), ("read_all", "snake"), ("HttpServer", "Pascal"),
        ("readAll", "camel"), ("plain", None),
    ],
)  # fmt: skip
def test_styles(name, style):
    assert style_of(name) == style


def test_only_completions_are_scored():
    _, items = load_items(load_corpus())
    batch = item_batch(items[:5])
    for item, inputs, targets in zip(items, batch.inputs, batch.targets, strict=False):
        scored = targets[targets != IGNORED]
        assert bytes(scored.tolist()).decode() == item.completion
        first = int((targets != IGNORED).nonzero()[0])
        assert bytes(inputs[: first + 1].tolist()).decode() == item.prompt


def test_training_lowers_the_loss_and_evens_the_load():
    model = Model(SMALL, seed=1)
    with torch.no_grad():
        model.routed()[0].gate.weight[0] += 0.3  # one expert starts out favoured or shunned
    text = Text(load_corpus(), seed=1)
    probe = text.draw(8, 64)
    before = load_per_expert(model, probe)[0]
    losses = []
    recipe = BaseRecipe(steps=60, sequences=4, length=64, bias_step=0.03)
    train_base(model, text, recipe, lambda *report: losses.append(report[2]))
    after = load_per_expert(model, probe)[0]
    assert losses[-1] < losses[0] - 1.0
    assert after.std() / after.mean() < before.std() / before.mean()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder in which the tiny recipes ran once."""
    tunes = {"light": QUICK} | {f"reference/{seed}": replace(QUICK, seed=seed) for seed in (7, 8)}
    recipes = Recipes(SMALL, BaseRecipe(steps=3, sequences=2, length=32), tunes)
    place = Place(tmp_path_factory.mktemp("demo") / "demo")
    place.root.mkdir()
    return place, recipes, run(place, recipes)


def run(place, recipes):
    base_key = stages.make_base(place, recipes)
    keys = stages.make_tunes(place, recipes, base_key)
    return stages.measure_references(place, recipes, keys, stages.write_probes(place))


def stamps(place):
    return {p: p.stat().st_mtime_ns for p in place.root.rglob("*") if p.is_file() and p != place.record}


def test_a_second_run_makes_nothing_again(small):
    place, recipes, _ = small
    run(place, recipes)  # whatever another test left behind
    before = stamps(place)
    run(place, recipes)
    assert stamps(place) == before


def test_a_changed_recipe_makes_only_its_own_tune_again(small):
    place, recipes, _ = small
    run(place, recipes)
    before = stamps(place)
    changed = replace(recipes, tunes=dict(recipes.tunes) | {"light": replace(QUICK, lr=1e-4)})
    run(place, changed)
    touched = {p.relative_to(place.root).parts[0] for p, stamp in stamps(place).items() if before[p] != stamp}
    assert touched == {"light"}


def test_what_was_deleted_is_made_again(small):
    place, recipes, _ = small
    place.receipt("reference/7").unlink()
    run(place, recipes)
    assert place.receipt("reference/7").exists()


def test_a_reference_that_did_not_learn_the_task_sets_no_budget(small):
    place, recipes, references = small
    with pytest.raises(stages.DemoError, match="task success .* does not clear 0.8"):
        stages.write_policy(place, recipes, references)
    assert not place.probes.exists()


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({"light": 0, "hard": 1}, 0),
        ({"light": 0, "hard": 0}, 1),
        ({"light": 1, "hard": 1}, 1),
        ({"light": 3, "hard": 1}, 1),
    ],
)
def test_the_demo_succeeds_only_with_the_expected_outcomes(monkeypatch, tmp_path, codes, expected):
    monkeypatch.setattr(demo, "atlas", lambda *words: codes[words[2].rsplit("/")[-1]])
    assert demo.judge(Place(tmp_path)) == expected
