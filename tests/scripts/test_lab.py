"""The lab's interventions do what they say, and its page counts what its rows hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from scripts.lab import surgery
from scripts.lab.families import FAMILIES, Family, widened
from scripts.lab.page import budgets, summary, table
from scripts.lab.pairs import FROZEN, all_pairs
from scripts.lab.training import tune
from scripts.training.checkpoint import BIAS, Tensors, read, released, write
from scripts.training.recipes import Tune

LAYER = 2
BOTH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def base(family: Family) -> Tensors:
    """An untrained checkpoint whose selection bias, where there is one, is not all alike."""
    tensors = released(family.build(3))
    generator = torch.Generator().manual_seed(4)
    return {
        name: t + 0.05 * torch.randn(t.shape, generator=generator) if name.endswith(BIAS) else t
        for name, t in tensors.items()
    }


def moved(one: Tensors, other: Tensors) -> set[str]:
    """Names whose bytes differ; both checkpoints must have the same."""
    assert one.keys() == other.keys()
    assert all(one[name].dtype == other[name].dtype for name in one)
    return {name for name in one if not torch.equal(one[name], other[name])}


def logits(family: Family, tensors: Tensors) -> Tensor:
    tokens = torch.randint(256, (3, 20), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return widened(family, tensors)(tokens)


def expert(number: int, layer: int = LAYER) -> set[str]:
    roles = ("gate_proj", "up_proj", "down_proj")
    return {f"model.layers.{layer}.mlp.experts.{number}.{role}.weight" for role in roles}


def routers(tensors: Tensors) -> set[str]:
    return {name for name in tensors if name.endswith("mlp.gate.weight")}


@BOTH
def test_a_checkpoint_survives_widening_and_the_disk(family: Family, tmp_path: Path) -> None:
    start = base(family)
    assert moved(start, released(widened(family, start))) == set()
    write(start, family.config, tmp_path / "base")
    assert moved(start, read(tmp_path / "base")) == set()


@BOTH
def test_relabelled_experts_compute_the_same(family: Family) -> None:
    start = base(family)
    changed = surgery.relabelled(family, start)
    assert len(moved(start, changed)) > 3 * family.experts  # nearly every expert of every layer
    torch.testing.assert_close(logits(family, changed), logits(family, start), rtol=1e-4, atol=1e-4)
    # Experts that move without their router rows are another model.
    torn = changed | {name: start[name] for name in routers(start)}
    assert not torch.allclose(logits(family, torn), logits(family, start), rtol=1e-2, atol=1e-2)


def test_a_clone_a_swap_and_a_copied_slice_move_experts_and_no_router() -> None:
    start = base(FAMILIES["qwen3_moe"])
    clone = surgery.experts_from(start, LAYER, {5: 3})
    assert moved(start, clone) == expert(5)
    assert all(torch.equal(clone[name.replace(".5.", ".3.")], clone[name]) for name in expert(5))
    swap = surgery.experts_from(start, LAYER, {2: 9, 9: 2})
    assert moved(start, swap) == expert(2) | expert(9)
    assert moved(start, surgery.experts_from(swap, LAYER, {2: 9, 9: 2})) == set()
    copied = surgery.experts_from(start, LAYER, {e: e - 4 for e in range(4, 8)})
    assert moved(start, copied) == set().union(*(expert(e) for e in range(4, 8)))


def test_an_expert_that_was_dropped_is_zero_and_alone() -> None:
    start = base(FAMILIES["qwen3_moe"])
    broken = surgery.zeroed_expert(start, LAYER, 7)
    assert moved(start, broken) == expert(7)
    assert not any(broken[name].any() for name in expert(7))


@BOTH
def test_router_damage_touches_router_weights_alone(family: Family) -> None:
    start = base(family)
    assert moved(start, surgery.collapsed_router(start)) == routers(start)
    noisy = surgery.noisy_router(start, 0.5)
    assert moved(start, noisy) == routers(start)
    for name in routers(start):
        size = (noisy[name].float() - start[name].float()).std() / start[name].float().std()
        assert float(size) == pytest.approx(0.5, abs=0.05)


def test_what_a_resume_loses() -> None:
    start = base(FAMILIES["deepseek_v3"])
    unbiased = surgery.without_bias(start)
    biases = {name for name in start if name.endswith(BIAS)}
    assert moved(start, unbiased) == biases
    assert not any(unbiased[name].any() for name in biases)
    trained = {name: 1.5 * t if "layernorm" in name else t for name, t in start.items()}
    gains = {name for name in start if "post_attention_layernorm" in name}
    lost = surgery.unit_gains(trained)
    assert moved(trained, lost) == gains
    assert all((lost[name] == 1.0).all() for name in gains)


@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (4, 7)])
def test_integers_move_matrices_by_half_a_step_at_most(bits: int, steps: int) -> None:
    start = base(FAMILIES["qwen3_moe"])
    coarse = surgery.int_groups(start, bits)
    assert moved(start, coarse) <= {name for name in start if surgery.is_matrix(name)}
    for name in moved(start, coarse):
        wide, near = (t[name].float().reshape(-1, 8) for t in (start, coarse))
        largest = wide.abs().amax(-1, keepdim=True)
        # half a step of the group, and what bfloat16 rounds off when it is stored again
        assert ((near - wide).abs() <= largest * (0.5 / steps + 2.0**-8)).all()


def test_fp8_blocks_keep_three_bits_of_mantissa() -> None:
    start = base(FAMILIES["deepseek_v3"])
    coarse = surgery.fp8_blocks(start)
    assert moved(start, coarse) == {name for name in start if surgery.is_matrix(name)}
    for name in moved(start, coarse):
        wide, near = start[name].float(), coarse[name].float()
        floor = wide.abs().max() * 2.0**-14  # below the normals of the block's scale
        assert ((near - wide).abs() <= wide.abs() * (2.0**-4 + 2.0**-8) + floor).all()


def test_deltas_dropped_scrambled_and_cut_to_a_rank() -> None:
    start = base(FAMILIES["qwen3_moe"])
    other = released(FAMILIES["qwen3_moe"].build(9))
    tuned = {name: (t.float() + 0.1 * other[name].float()).to(t.dtype) for name, t in start.items()}
    dropped = surgery.dropped_delta(start, tuned, lambda name: ".experts." not in name)
    assert moved(tuned, dropped) == {name for name in moved(start, tuned) if ".experts." in name}
    assert not any(".experts." in name for name in moved(start, dropped))
    matrices = {name for name in start if surgery.is_matrix(name)}
    scrambled = surgery.scrambled_delta(start, tuned, surgery.is_matrix)
    assert moved(tuned, scrambled) == matrices
    for name in matrices:
        right, wrong = (t[name].float() - start[name].float() for t in (tuned, scrambled))
        assert float(wrong.norm()) == pytest.approx(float(right.norm()), rel=0.02)
        assert abs(float(torch.corrcoef(torch.stack([right.flatten(), wrong.flatten()]))[0, 1])) < 0.2
    assert moved(start, surgery.low_rank_delta(start, tuned, 4, 0.0)) == set()
    low = surgery.low_rank_delta(start, tuned, 2)
    assert moved(start, low) == matrices
    for name in list(matrices)[:5]:
        size = torch.linalg.svdvals(low[name].float() - start[name].float())
        assert float(size[2]) < 0.05 * float(size[1])  # nothing but rounding beyond the rank


@BOTH
@pytest.mark.parametrize("trains", ["backbone", "router", "experts", "attention"])
def test_what_a_tune_does_not_train_keeps_its_bytes(family: Family, trains: str) -> None:
    start = base(family)
    changed = moved(
        start, tune(family, start, Tune(task="sums", replay=0, items=4, steps=2, trains=trains, lr=0.1))
    )
    assert changed
    kinds = {
        "router": lambda name: ".mlp.gate." in name,
        "routed_expert": lambda name: ".mlp.experts." in name,
        "attention": lambda name: ".self_attn." in name,
    }
    for frozen in FROZEN[trains]:
        assert not any(kinds[frozen](name) for name in changed), frozen
    if trains in ("router", "attention"):
        assert all(kinds[trains](name) for name in changed)
    if trains == "experts":
        assert all(kinds["routed_expert"](name) for name in changed)


def test_pairs_have_names_of_their_own_and_enough_are_judged() -> None:
    judged = [pair for family in FAMILIES.values() for pair in all_pairs(family) if not pair.calibrates]
    assert len(judged) >= 40
    assert {pair.expect for pair in judged} == {"pass", "fail", "open"}
    for family in FAMILIES.values():
        names = [pair.name for pair in all_pairs(family)]
        assert len(set(names)) == len(names)
        assert sum(pair.calibrates for pair in all_pairs(family)) >= 3


def row(pair: str, expect: str, verdict: str, **more: object) -> dict:
    """A fabricated row of the lab's table, of a pair that the lab has."""
    channels = ("coordinate_drift_z", "boundary_drift", "transition_drift", "content_drift", "overlap_drop")
    return {
        **dict.fromkeys(channels, 0.01),
        **{"family": "qwen3_moe", "pair": pair, "kind": "clone", "expect": expect, "verdict": verdict},
        **{"rewrite": "preserved", "damage": "undamaged", "failed": "", "forgetting": 0.01},
        **{"forgetting_worst_low": 0.0, "parameter_distance": 0.02},
    } | more


def test_the_summary_counts_false_passes_false_fails_and_objects() -> None:
    rows = [
        row("replay-sft-1", "pass", "pass"),
        row("replay-sft-2", "pass", "fail"),  # a false fail
        row("swapped", "fail", "pass"),  # a false pass, its object not named
        row("clone", "fail", "fail", failed="content identity", rewrite="rewritten"),  # named
        row("slice-copied", "fail", "inconclusive", parameter_distance=0.3),  # left open, not named
        row("no-replay-sft", "open", "pass", forgetting_worst_low=0.2),  # forgot for certain, passed
        row("light-sft", "open", "fail", forgetting_worst_low=None),  # not bounded: not certain
    ]
    margin = SimpleNamespace(budgets={"nll": SimpleNamespace(value=0.1)})
    said = summary(rows, {"qwen3_moe": margin}, FAMILIES)
    for line in (
        "* 7 judged pairs, 3 broken by construction, 2 sound by construction.",
        "* False passes among the broken: 1 (qwen3 swapped); left open: 1 (qwen3 slice-copied).",
        "* False fails among the sound: 1 (qwen3 replay-sft-2); passed: 1.",
        "* Pairs whose forgetting lies above the margin for certain: 1; passed all the same: 1 (qwen3 no-replay-sft).",
        "* Damage with an object to name: 3; named by the right gate: 1; not named: qwen3 swapped, qwen3 slice-copied.",
        "* Atlas rewritten while no base domain is shown damaged: 1 (qwen3 clone).",
        "* qwen3_moe: a plain parameter distance that lets every sound tune through (largest 0.02) catches 1 of 3 "
        "broken pairs and misses qwen3 swapped, qwen3 clone.",
    ):
        assert line in said.splitlines()


def test_the_table_has_a_line_a_pair_and_words_for_verdicts() -> None:
    lines = table(
        [row("clone", "fail", "inconclusive"), row("swapped", "fail", "fail", failed="identity")]
    ).splitlines()
    assert len(lines) == 4
    assert "| clone | clone | fail | open | preserved |" in lines[2]
    assert lines[3].endswith("| identity |")


def test_a_budget_that_could_not_be_set_shows_why() -> None:
    number = SimpleNamespace(value=0.02, healthy=(0.001, 0.01), rule="prediction")
    none = SimpleNamespace(value=None, healthy=(), rule="choose a number by hand")

    class Budgets(dict):
        def __missing__(self, key: str) -> SimpleNamespace:
            return number

    made = SimpleNamespace(budgets=Budgets(content=none), document_share=0.11)
    lines = budgets({"qwen3_moe": made}).splitlines()
    assert "| coordinate | 0.02 (0.001 to 0.01) |" in lines
    assert "| content | choose a number by hand |" in lines
    assert lines[-1] == "| document_share | 0.11 |"


def test_a_recipe_is_deterministic() -> None:
    family = FAMILIES["qwen3_moe"]
    start, recipe = base(family), Tune(task="sums", replay=0, items=4, steps=2)
    first, again = (tune(family, start, recipe) for _ in range(2))
    assert moved(first, again) == set()
    assert moved(first, tune(family, start, replace(recipe, seed=2)))
