"""The falsifiers on worlds where the answer is known, and the statistics against SciPy and plain refits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from moe_atlas.cli import run
from moe_atlas.derivation.derive import derive
from moe_atlas.falsification.correlations import correlation, left_out_errors, partial, resampled
from moe_atlas.falsification.readings import (
    QUANTITIES,
    Reading,
    Task,
    average_ranks,
    ranks_within,
    reading_of,
)
from moe_atlas.falsification.statements import associations, statements
from moe_atlas.receipt.write import write_receipt
from tests.receipt import synthetic


def test_ranks_are_scipys() -> None:
    values = np.array([3.0, 1.0, 1.0, 2.0, 3.0, 3.0])
    assert average_ranks(values).tolist() == stats.rankdata(values).tolist()
    assert ranks_within(np.array([5.0, 1.0, 100.0, 200.0]), ["a", "a", "b", "b"]).tolist() == [
        0.75,
        0.25,
        0.25,
        0.75,
    ]


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 30))
    assert correlation(average_ranks(x), average_ranks(y)) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert correlation(np.ones(30), y) == 0.0


def test_a_partial_correlation_forgets_what_is_given() -> None:
    rng = np.random.default_rng(2)
    given, other = rng.normal(size=(2, 4000))
    assert abs(partial(given + 0.1 * other, given - 0.1 * rng.normal(size=4000), given[:, None])) < 0.06
    assert partial(given + other, given + other, given[:, None]) == pytest.approx(1.0)
    assert partial(given, other, given[:, None]) == partial(np.ones(4000), other, given[:, None]) == 0.0


def test_left_out_errors_are_those_of_refits() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(12, 2)), rng.normal(size=12)
    for left in range(12):
        kept = np.arange(12) != left
        fit = np.linalg.lstsq(np.column_stack([np.ones(11), x[kept]]), y[kept], rcond=None)[0]
        error = (y[left] - np.concatenate([[1.0], x[left]]) @ fit) ** 2
        assert left_out_errors(x, y)[left] == pytest.approx(error)


def test_pairs_are_drawn_within_their_family() -> None:
    families = ["a"] * 3 + ["b"] * 5
    for index in resampled(families, resamples=50):
        assert (np.sort(index)[:3] < 3).all()
        assert (index < 3).sum() == 3


def world(cause: str, pairs: int = 60, noise: float = 0.1, seed: int = 0) -> list[Reading]:
    """Forgetting that follows one quantity and nothing else."""
    rng = np.random.default_rng(seed)
    readings = []
    for number in range(pairs):
        values = {key: float(rng.gamma(2.0)) for key in QUANTITIES}
        forgetting = values[cause] + noise * float(rng.normal())
        readings.append(
            Reading(f"{number}", "ab"[number % 2], forgetting, values, "undetermined", "untested", ())
        )
    return readings


def answers(readings: list[Reading]) -> dict[str, str]:
    return {found.key: found.answer for found in statements(readings)}


def test_each_world_gives_its_own_answer() -> None:
    assert answers(world("coordinate_drift_z"))["coordinates"] == "supported"
    assert answers(world("raw_norm_drift"))["coordinates"] == "not supported"
    assert answers(world("boundary_drift"))["telemetry"] == "supported"
    assert answers(world("entropy_drop"))["telemetry"] != "supported"
    assert answers(world("content_drift"))["distance"] == "supported"
    assert answers(world("parameter_distance"))["distance"] == "not supported"


def test_few_pairs_answer_nothing() -> None:
    assert set(answers(world("content_drift", pairs=19)).values()) == {"undetermined"}


def tuned(outcome: str, forgetting: float, nll: float, name: str = "style") -> Reading:
    return replace(
        world("content_drift", 1)[0], outcome=outcome, forgetting=forgetting, tasks=(Task(name, nll, 3.0),)
    )


def test_matched_success_compares_equals_only() -> None:
    preserved = [tuned("preserved", 0.01 * n, 1.0) for n in range(3)]
    worse = [tuned("rewritten", 0.5 + 0.01 * n, 1.1) for n in range(11)]
    unequal = [tuned("rewritten", -5.0, 0.1) for _ in range(11)]
    other = [tuned("rewritten", -5.0, 1.0, "sums") for _ in range(11)]
    found = next(s for s in statements([*preserved, *worse, *unequal, *other]) if s.key == "matched")
    assert found.answer == "supported"
    assert found.statistics[0].estimate == pytest.approx(0.55 - 0.01)
    assert answers([*preserved, *[replace(r, forgetting=-1.0) for r in worse]])["matched"] == "not supported"
    assert answers([*preserved, *worse[:9]])["matched"] == "undetermined"


def test_an_avoidable_rewrite_speaks_against_expansion() -> None:
    one = tuned("rewritten", 0.1, 1.0)
    assert answers([replace(one, classification="misclassified")])["expansive"] == "not supported"
    assert answers([replace(one, classification="knowledge-expansive")] * 3)["expansive"] == "supported"
    assert answers([one] * 30)["expansive"] == "undetermined"


def test_associations_name_the_cause() -> None:
    found = {key: alone.estimate for key, alone, _ in associations(world("overlap_drop"))}
    assert max(found, key=lambda key: found[key]) == "overlap_drop"


def receipt(seed: int, scale: float) -> tuple[dict, dict]:
    facts = synthetic.facts(layers=(1, 2), experts=4)
    facts["probe"]["policy"]["resamples"] = 200
    return facts, synthetic.windows(facts, seed, scale=scale)


def test_a_reading_takes_protected_layers_and_base_domains() -> None:
    facts, windows = receipt(0, 1.0)
    body = derive(facts, windows)
    found = reading_of(body, "x")
    assert found.values["content_drift"] == body["layers"][1]["pair"]["content_drift"]["estimate"]
    base = [row["nll_increase"]["estimate"] for row in body["domains"] if row["role"] == "base"]
    assert found.forgetting == pytest.approx(np.mean(base))


def test_the_command_reads_folders_and_prints_five_answers(tmp_path: Path, capsys) -> None:
    for seed in range(3):
        write_receipt(*receipt(seed, 1.0 + seed), tmp_path / f"{seed}.json")
    assert run(["falsify", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["answer"] for one in found["statements"]] == ["undetermined"] * 5
    assert found["pairs"] == 3
    assert run(["falsify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("UNDETERMINED") == 5
