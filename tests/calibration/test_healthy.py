"""Who may set budgets: tunes that somebody would promote, each of its own run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe_atlas.calibration.healthy import Origin, origin_of, require_healthy
from moe_atlas.cli import run
from moe_atlas.errors import UsageError
from moe_atlas.receipt.write import write_receipt
from tests.receipt import synthetic


def origin(name: str, **changes: Any) -> tuple[str, Origin]:
    facts: dict[str, Any] = {"verdict": "inconclusive", "tuned": name, "windows": f"w{name}"}
    return f"{name}.json", Origin(**facts | {"untuned": False, "run": None} | changes)


def refusal(origins: list[tuple[str, Origin]], *accepted: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        require_healthy(origins, accepted)
    return caught.value


@pytest.mark.parametrize("verdict", ["pass", "inconclusive"])
def test_pairs_that_do_not_fail_are_healthy(verdict: str) -> None:
    require_healthy([origin(name, verdict=verdict) for name in "abc"])


def test_a_failed_receipt_is_refused_by_name_or_accepted_by_name() -> None:
    pairs = [origin("a"), origin("b", verdict="fail")]
    error = refusal(pairs)
    assert (error.code, error.where, error.exit_code) == ("E_NOT_HEALTHY", "b.json", 2)
    assert "--accept failed" in error.next_step
    require_healthy(pairs, ["failed"])
    refusal(pairs, "one-run")


def test_a_pair_in_which_nothing_was_tuned_is_never_healthy() -> None:
    error = refusal([origin("a"), origin("b", untuned=True)], "failed", "one-run")
    assert (error.code, error.where) == ("E_NOT_HEALTHY", "b.json")
    assert "nothing was tuned" in error.problem


@pytest.mark.parametrize("same", [{"tuned": "a"}, {"windows": "wa"}])
def test_one_tuned_checkpoint_counts_once(same: dict[str, Any]) -> None:
    error = refusal([origin("a"), origin("c"), origin("b", **same)], "failed", "one-run")
    assert (error.code, error.where) == ("E_REPEATED", "b.json")
    assert "a.json" in error.problem


def test_checkpoints_of_one_run_are_refused_by_name_or_accepted_by_name() -> None:
    pairs = [origin("a", run="run sft"), origin("c"), origin("b", run="run sft")]
    error = refusal(pairs)
    assert (error.code, error.where) == ("E_ONE_RUN", "b.json")
    assert "run sft" in error.problem
    assert "a.json" in error.problem
    require_healthy(pairs, ["one-run"])
    require_healthy([origin("a", run="run 1"), origin("b", run="run 2")])


@pytest.mark.parametrize(
    ("path", "run"),
    [
        ("out/checkpoint-500", "the run in out"),
        ("out/global_step1000", "the run in out"),
        ("out/sft-epoch_3", "the run in out/sft-"),
        ("tunes/seed-7", None),
        ("tunes/v2", None),
        ("out/final", None),
    ],
)
def test_numbered_checkpoints_of_one_folder_are_of_one_run(path: str, run: str | None) -> None:
    assert origin_of(receipt(tuned={"digest": "t", "path": path})).run == run


def receipt(**changes: Any) -> dict[str, Any]:
    sides = {"base": {"digest": "b"}, "tuned": changes.pop("tuned", {"digest": "t"})}
    facts = {"checkpoints": sides, "verdict": "pass", "evidence": {"sha256": "w"}, "parent": None}
    return facts | {"identity": {"identical_checkpoints": False}} | changes


def test_the_ledger_names_the_run() -> None:
    assert origin_of(receipt(parent={"ledger": {"run": "sft", "seq": 3}})).run == "run sft"


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": {"identical_checkpoints": True}},
        {"identity": {"identical_replayed": True}},
        {"tuned": {"digest": "b"}},
        {"tuned": {"digest": "t", "values_digest": "b"}},
    ],
)
def test_what_shows_that_nothing_was_tuned(changes: dict[str, Any]) -> None:
    assert origin_of(receipt(**changes)).untuned
    assert not origin_of(receipt()).untuned


def written(folder: Path, seed: int, scale: float = 1.0, tuned: int | None = None) -> Path:
    facts = synthetic.facts(layers=(1, 2), experts=4)
    facts["probe"]["policy"]["resamples"] = 200
    facts["checkpoints"]["tuned"]["digest"] = f"{seed if tuned is None else tuned:064x}"
    folder.mkdir(parents=True, exist_ok=True)
    write_receipt(facts, synthetic.windows(facts, seed, scale=scale), folder / f"{seed}.json")
    return folder / f"{seed}.json"


def test_the_command_refuses_a_fail_and_says_what_it_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        written(tmp_path / "good", seed)
    bad = written(tmp_path / "good", 9, 12.0)
    out = tmp_path / "policy.yaml"
    command = ["calibrate", "--healthy", str(tmp_path / "good"), "--out", str(out)]
    assert run(command) == 2
    assert f"E_NOT_HEALTHY {bad}: its verdict is FAIL" in capsys.readouterr().err
    assert not out.exists()
    assert run([*command, "--accept", "failed"]) == 0
    assert "# Accepted by name as healthy: receipts whose verdict is FAIL" in out.read_text()
    assert run([*command, "--accept", "anything", "--force"]) == 2


def test_a_checkpoint_is_not_both_healthy_and_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        written(tmp_path / "good", seed)
    bad = written(tmp_path, 9, 12.0, tuned=1)
    command = ["calibrate", "--healthy", str(tmp_path / "good"), "--damaged", str(bad)]
    assert run([*command, "--out", str(tmp_path / "policy.yaml")]) == 2
    error = capsys.readouterr().err
    assert f"E_REPEATED {bad}" in error
    assert "given as healthy" in error
