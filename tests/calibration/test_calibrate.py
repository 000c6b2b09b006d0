"""Budgets from healthy pairs: the bound against SciPy, the rules by table, refusals, and the file end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from moe_atlas.calibration.bounds import prediction_bound, rounded_up, student_cdf, student_quantile
from moe_atlas.calibration.budgets import calibrate, outcomes
from moe_atlas.calibration.healthy import Origin
from moe_atlas.calibration.pairs import Pair, pair_of, receipt_paths
from moe_atlas.calibration.policy_text import policy_file, set_for, table
from moe_atlas.cli import run
from moe_atlas.derivation.derive import derive
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.probes.load import load_probes
from moe_atlas.probes.settings.cannot_fail import Measured, cannot_fail
from moe_atlas.receipt.write import write_receipt
from moe_atlas.views.registered import Policy
from tests.receipt import synthetic
from tests.support import pairs as tiny_pairs

CHANNELS = ("coordinate", "boundary", "transition", "content", "expert_content", "overlap_drop")
CHANNELS += ("dead_share_rise", "entropy_drop", "load_cv_rise")
KEYS = (*CHANNELS, "tau", "nll", "kl", "document_nll")


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30])
@pytest.mark.parametrize("t", [-2.0, 0.3, 5.0])
def test_student_is_scipys(freedom: int, t: float) -> None:
    assert student_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-13)
    assert student_quantile(0.99, freedom) == pytest.approx(stats.t.ppf(0.99, freedom), rel=1e-9)


def test_the_prediction_bound_holds_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 6))
    held = np.mean([row[5] < prediction_bound(row[:5].tolist(), 0.9) for row in draws])
    assert held == pytest.approx(0.9, abs=3 * np.sqrt(0.09 / 4000))


@pytest.mark.parametrize(
    ("value", "up"), [(0.0123, 0.013), (0.012, 0.012), (3.41, 3.5), (-1.0, 0.0), (0.0, 0.0)]
)
def test_rounding_is_upwards_to_two_digits(value: float, up: float) -> None:
    assert rounded_up(value) == up


def pair(name: str = "a", value: float | None = 0.01, **changes: Any) -> Pair:
    made = Pair(
        name=name,
        receipt_sha256=name * 64,
        setting={"family": "qwen3_moe", "top_k": [2], "evaluation": {"experts": "active"}},
        bounds=dict.fromkeys(KEYS, value),
        certain=dict.fromkeys(KEYS, None if value is None else value / 2),
        missing=dict.fromkeys(KEYS, "no routed layer"),
        floors={},
        policy=Policy(synthetic.policy()),
        documents=40,
        experts=8,
        origin=Origin("inconclusive", f"tuned {name}", f"windows {name}", untuned=False, run=None),
    )
    return replace(made, **changes)


def healthy(**changes: Any) -> list[Pair]:
    return [pair(name, value, **changes) for name, value in (("a", 0.010), ("b", 0.012), ("c", 0.011))]


def test_a_budget_is_the_factor_times_the_prediction_bound() -> None:
    found = calibrate(healthy(), level=0.99, factor=2.0)
    expected = 0.011 + stats.t.ppf(0.99, 2) * 0.001 * np.sqrt(4 / 3)
    assert found.budgets["content"].bound == pytest.approx(expected)
    assert found.budgets["content"].value == rounded_up(2 * expected)
    assert found.reached == 0.75
    assert found.budgets["dead_share_rise"].value == rounded_up(1.5 / 8)


def test_no_budget_lies_below_ten_noise_floors() -> None:
    found = calibrate(healthy(floors={"boundary": 0.03}))
    assert found.budgets["boundary"].value == 0.3
    assert found.budgets["boundary"].rule == "noise floor"
    assert found.budgets["content"].rule == "prediction"


@pytest.mark.parametrize(
    ("values", "budget"), [((None, None, None), 0.35), ((0.0, 0.0, 0.0), 0.35), ((0.9, 0.95, 0.99), None)]
)
def test_single_experts_keep_their_default_where_no_pair_moved_them(values: Any, budget: Any) -> None:
    found = calibrate([pair(name, value) for name, value in zip("abc", values, strict=True)]).budgets
    assert found["expert_content"].value == budget
    assert found["content"].value is None


def test_what_cannot_be_defended_is_null_with_its_reason() -> None:
    unbounded = calibrate([*healthy()[:2], pair("d", None)]).budgets["boundary"]
    assert (unbounded.value, unbounded.rule) == (None, "d: no routed layer")
    flat = calibrate([pair(n, 0.0) for n in "abc"]).budgets["entropy_drop"]
    assert flat.value is None
    assert "by hand" in flat.rule
    useless = calibrate([pair(n, 0.5) for n in "abc"]).budgets["boundary"]
    assert useless.value is None
    assert "from 0.5 on it says nothing" in useless.rule


@pytest.mark.parametrize("value", [1e-4, 0.01, 0.1, 0.17, 0.25, 0.4, 0.6, 1.0, 3.0])
def test_no_budget_is_set_that_could_not_fail(value: float) -> None:
    found = calibrate([pair(name, value) for name in "abc"])
    policy = yaml.safe_load(policy_file(found, [], "policy.yaml"))["policy"]
    policy["rewrite"] = {"handoff": None, "smooth": None} | policy["rewrite"]
    probe = {"policy": policy, "protected_layers": "all", "domains": []}
    measured = Measured(routed=[0], layers=[(8, 2)], met=[])
    lines = [*cannot_fail(probe), *cannot_fail(probe, measured)]
    assert [line for line in lines if "gates none of" not in line] == []


def test_a_receipt_that_guards_nothing_sets_no_budget() -> None:
    facts, windows = synthetic.audit()
    receipt = derive(facts, windows)
    for layer in receipt["layers"]:
        layer["protected"] = False
    with pytest.raises(InputRefused, match="E_CALIBRATION"):
        pair_of(receipt, windows, "open.json")


def test_two_pairs_and_mixtures_and_repetitions_are_refused() -> None:
    with pytest.raises(UsageError, match="E_TOO_FEW"):
        calibrate(healthy()[:2])
    other = pair("d", setting=pair().setting | {"top_k": [4]})
    with pytest.raises(UsageError, match=r"E_MIXTURE d: has top_k \[4\], but a has \[2\]"):
        calibrate([*healthy(), other])
    with pytest.raises(UsageError, match="E_REPEATED"):
        calibrate([*healthy(), replace(healthy()[0], name="copy")])


def test_caught_open_and_missed() -> None:
    found = calibrate(healthy())
    budget = found.budgets["content"].value
    assert outcomes(pair("x", budget / 2), found)["content"] == "missed"
    assert outcomes(pair("x", budget), found)["content"] == "no pass"  # equal is not below
    assert outcomes(pair("x", 2.1 * budget), found)["content"] == "fail"
    assert outcomes(pair("x", None), found)["content"] == "unknown"
    assert outcomes(pair("x", 5.0), found)["document_nll"] == "no pass"  # the tail guard never fails
    lines = table(found, [pair("x", 0.001), pair("y", 5.0)])
    assert lines[-1] == "let through by every budget: x"
    assert any(line.startswith("content: fails 1 of 2, lets 1 through") for line in lines)


def written(folder: Path, seed: int, scale: float) -> Path:
    facts = synthetic.facts(layers=(1, 2), experts=4)
    facts["probe"]["policy"]["resamples"] = 200
    facts["checkpoints"]["tuned"]["digest"] = f"{seed:064x}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{seed}.json"
    write_receipt(facts, synthetic.windows(facts, seed, scale=scale), path)
    return path


def test_a_pair_takes_the_worst_layer_and_the_worst_document() -> None:
    facts = synthetic.facts(layers=(1, 2, 4), experts=4)
    facts["probe"]["policy"]["resamples"] = 200
    windows = synthetic.windows(facts)
    receipt = derive(facts, windows) | {"evidence": {"receipt_sha256": "0", "sha256": "1"}}
    found = pair_of(receipt, windows, "x")
    protected = [layer["pair"]["content_drift"] for layer in receipt["layers"] if layer["protected"]]
    assert found.bounds["content"] == max(interval["high"] for interval in protected)
    assert found.certain["content"] == max(interval["simultaneous_low"] for interval in protected)
    margin = receipt["margins"]["refinement_margin"]
    assert found.bounds["tau"] == pytest.approx(0.9 - margin["low"])
    base = windows["windows.domain"] < 2
    increase = (windows["output.nll_tuned"] - windows["output.nll_base"])[base]
    assert found.bounds["document_nll"] == pytest.approx(increase.max())
    rows = [row["kl"] for row in receipt["domains"][:2]]
    assert found.bounds["kl"] == max(row["high"] for row in rows)
    assert found.certain["kl"] == max(row["low"] for row in rows)


def test_the_command_writes_a_policy_that_a_probe_file_can_be_registered_under(
    tmp_path: Path, capsys
) -> None:
    for seed in range(4):
        written(tmp_path / "good", seed, 1.0)
    bad = written(tmp_path / "bad", 9, 12.0)
    out = tmp_path / "policy.yaml"
    arguments = ["calibrate", "--healthy", str(tmp_path / "good"), "--damaged", str(bad), "--out", str(out)]
    assert run(arguments) == 0
    text = out.read_text()
    assert "4 healthy" in capsys.readouterr().out
    assert "4/5 = 80%" in text
    assert yaml.safe_load(text)["policy"]["set_for"] == {"family": "test", "top_k": 2, "experts": "active"}
    probes = tiny_pairs.probe(tmp_path / "probe")
    domains = yaml.safe_load(probes.read_text())
    del domains["policy"], domains["protected_layers"]
    domains["domains"].append({"name": "sft", "role": "task", "source": "code.jsonl", "documents": 40})
    domains["domains"][-1]["success"] = {"metric": "nll", "at_most": 1.0}
    probes.write_text(yaml.safe_dump(domains))
    config = load_probes(probes, policy_from=out)
    assert config.policy.rewrite.limits["content"] == yaml.safe_load(text)["policy"]["rewrite"]["content"]
    assert config.policy.damage.kl == yaml.safe_load(text)["policy"]["damage"]["kl"] > 0
    assert (config.protected_layers.describe(), config.evaluation.quantile) == ([2], 0.9)
    assert run(arguments) == 2  # it is there already
    assert "E_EXISTS" in capsys.readouterr().err
    receipt = sorted(Path(arguments[arguments.index("--healthy") + 1]).rglob("*.json"))[0]
    before = receipt.read_bytes()
    assert run([str(receipt) if word == str(out) else word for word in arguments] + ["--force"]) == 2
    assert "E_OVER_INPUT" in capsys.readouterr().err
    assert receipt.read_bytes() == before


def test_a_limit_of_the_divergence_is_written_or_left_out_and_never_null() -> None:
    known = yaml.safe_load(policy_file(calibrate(healthy()), [], "p.yaml"))["policy"]["damage"]
    assert known["kl"] == calibrate(healthy()).budgets["kl"].value == known["nll"]
    lost = [replace(pair, bounds=pair.bounds | {"kl": None}, missing={"kl": "lost"}) for pair in healthy()]
    text = policy_file(calibrate(lost), [], "p.yaml")
    assert "kl" not in yaml.safe_load(text)["policy"]["damage"]  # null would leave it ungated
    assert "# kl: a: lost" in text


@pytest.mark.parametrize(
    ("protected", "spelled"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "all"),
        ([2, 3, 4, 5], "mid-band"),
        ([0, 2, 3, 4], [0, "2-4"]),
    ],
)
def test_the_budgets_bind_the_layers_and_the_evaluation_they_were_set_on(
    protected: list[int], spelled: Any
) -> None:
    facts = synthetic.facts(layers=tuple(range(8)), experts=4)
    facts["probe"] |= {
        "protected_layers": protected,
        "evaluation": {"experts": "all", "token_stride": 2, "quantile": 0.8},
    }
    facts["probe"]["policy"]["resamples"] = 200
    for layer in facts["layers"]:
        layer["protected"] = layer["layer"] in protected
    windows = synthetic.windows(facts)
    receipt = derive(facts, windows) | {"evidence": {"receipt_sha256": "0", "sha256": "1"}}
    one = pair_of(receipt, windows, "a")
    origins = [replace(one.origin, tuned=name, windows=name) for name in "abc"]
    pairs = [
        replace(one, name=origin.tuned, receipt_sha256=origin.tuned, origin=origin) for origin in origins
    ]
    written = yaml.safe_load(policy_file(calibrate(pairs), [], "policy.yaml"))
    assert written["protected_layers"] == spelled
    assert written["evaluation"] == facts["probe"]["evaluation"]


def test_a_receipt_that_was_touched_sets_no_budget(tmp_path: Path, capsys) -> None:
    for seed in range(3):
        path = written(tmp_path / "good", seed, 1.0)
    path.write_bytes(path.read_bytes().replace(b'"verdict"', b'"verdicT"', 1))
    assert run(["calibrate", "--healthy", str(tmp_path / "good"), "--out", str(tmp_path / "p.yaml")]) == 5
    assert not (tmp_path / "p.yaml").exists()


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E_NO_RECEIPT"):
        receipt_paths([tmp_path])


def test_the_file_says_when_no_floor_was_measured() -> None:
    assert "No receipt measured a noise floor" in policy_file(calibrate(healthy()), [], "p.yaml")
    measured = policy_file(calibrate(healthy(floors={"content": 1e-6})), [], "p.yaml")
    assert "No receipt measured" not in measured


def test_a_receipt_that_names_no_evaluation_set_binds_none() -> None:
    made = pair(setting=pair().setting | {"evaluation": {}})
    assert set_for(made) == {"family": made.setting["family"], "top_k": 2}
