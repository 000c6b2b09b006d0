"""The demo's stages on a tiny model: nothing is made twice, and only `atlas calibrate` sets budgets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moe_atlas.probes.load import load_probes
from scripts.demo import __main__ as demo
from scripts.demo import stages
from scripts.demo.place import Place
from scripts.demo.probes import MEASURING, probe_file
from scripts.demo.recipes import LIGHT, Recipes
from scripts.demo.work import Outcome
from scripts.training.model import Shape
from scripts.training.recipes import Base

SMALL = Shape(
    hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
    q_lora_rank=16, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=8,
    num_experts_per_tok=2,
)  # fmt: skip
QUICK = replace(LIGHT, steps=2, items=4, replay=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder in which the tiny recipes ran once."""
    torch.set_num_threads(1)
    tunes = {"light": QUICK} | {f"reference/{seed}": replace(QUICK, seed=seed) for seed in (7, 8, 9)}
    recipes = Recipes(SMALL, Base(steps=3, sequences=2, length=32), tunes, documents=40)
    place = Place(tmp_path_factory.mktemp("demo") / "demo")
    place.root.mkdir()
    run(place, recipes)
    return place, recipes


def run(place, recipes):
    keys = stages.make_tunes(place, recipes, stages.make_base(place, recipes))
    stages.measure_references(place, recipes, keys, stages.write_probes(place, recipes.documents))


def stamps(place):
    return {p: p.stat().st_mtime_ns for p in place.root.rglob("*") if p.is_file() and p != place.record}


def test_a_second_run_makes_nothing_again(small):
    place, recipes = small
    run(place, recipes)  # whatever another test left behind
    before = stamps(place)
    run(place, recipes)
    assert stamps(place) == before


def test_a_changed_recipe_makes_only_its_own_tune_again(small):
    place, recipes = small
    run(place, recipes)
    before = stamps(place)
    changed = replace(recipes, tunes=dict(recipes.tunes) | {"light": replace(QUICK, lr=1e-4)})
    run(place, changed)
    touched = {p.relative_to(place.root).parts[0] for p, stamp in stamps(place).items() if before[p] != stamp}
    assert touched == {"light"}


def test_what_was_deleted_is_made_again(small):
    place, recipes = small
    place.receipt("reference/7").unlink()
    run(place, recipes)
    assert place.receipt("reference/7").exists()


def test_references_that_did_not_learn_the_task_set_no_budget(small):
    place, _ = small
    with pytest.raises(stages.DemoError, match=r"calibrate ended with exit code 2: .*its verdict is FAIL"):
        stages.set_budgets(place)
    assert not place.policy.exists()


def test_a_reference_that_cannot_be_audited_ends_the_demo(small, monkeypatch):
    place, recipes = small
    run(place, recipes)
    monkeypatch.setattr(stages, "measuring_key", lambda *parts: "another")
    refused = Outcome(4, "", "E_SOMETHING: refused")
    monkeypatch.setattr(stages, "run_atlas", lambda lines, colour: [done(line, refused) for line in lines])
    with pytest.raises(stages.DemoError, match=r"exit code 4: E_SOMETHING"):
        run(place, recipes)


def done(line, refused):
    """Registration succeeds, an audit does not."""
    return refused if line[0] == "audit" else Outcome(0, "", "")


def test_only_the_references_have_a_policy_of_the_demos_own(tmp_path):
    """And that one gates nothing; the judged pairs' policy is `atlas calibrate`'s."""
    (tmp_path / "references.yaml").write_text(probe_file("references", 40, MEASURING))
    policy = load_probes(tmp_path / "references.yaml").policy.describe()
    budgets = policy["rewrite"] | policy["damage"]
    measured = {key for key in budgets if key not in ("refinement", "handoff", "smooth")}
    assert {key for key in measured if budgets[key] is not None} == set()
    assert "policy" not in probe_file("demo", 40)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({"light": 0, "hard": 1}, 0),
        ({"light": 0, "hard": 0}, 1),
        ({"light": 1, "hard": 1}, 1),
        ({"light": 3, "hard": 1}, 1),
    ],
)
def test_the_demo_succeeds_only_with_the_expected_outcomes(monkeypatch, tmp_path, codes, expected, capsys):
    def said(lines, colour):
        assert all("--policy-from" in line for line in lines)
        return [Outcome(codes[line[2].rsplit("/")[-1]], f"said of {line[2]}", "") for line in lines]

    monkeypatch.setattr(stages, "run_atlas", said)
    assert demo.outcome(demo.judge(Place(tmp_path))) == expected
    assert f"said of {tmp_path / 'hard'}" in capsys.readouterr().out
