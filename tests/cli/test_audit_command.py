"""`atlas audit` as a pipeline meets it: exit codes, one-line errors, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from moe_atlas.auditing import run as measuring
from moe_atlas.cli import run
from scripts.oracle import tiny
from tests.support import pairs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("command")
    base = tiny.save("qwen3_moe", root / "base", seed=5)
    pairs.variant(base, root / "light", pairs.jitter(3e-3, lambda name: "self_attn" in name))
    pairs.variant(base, root / "hard", pairs.jitter(0.5, lambda name: "norm" not in name))
    pairs.probe(root / "probe")
    return root


@pytest.fixture
def audit(place, tmp_path, capsys):
    def call(base, tuned, *extra, probe="probe/probes.yaml"):
        arguments = [str(place / base), str(place / tuned), "--probe", str(place / probe)]
        code = run(["audit", *arguments, "--receipt", str(tmp_path / "receipt.json"), *extra])
        return code, *capsys.readouterr()

    return call


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_light_tune_passes_and_the_receipt_verifies(audit, tmp_path, capsys):
    code, out, _ = audit("base", "light")
    assert code == 0
    assert "PASS" in out
    assert left_behind(tmp_path) == ["receipt.json", "receipt.windows.safetensors"]
    assert run(["verify", str(tmp_path / "receipt.json")]) == 0


def test_a_hard_tune_fails_with_its_reasons_first(audit, tmp_path):
    code, out, _ = audit("base", "hard")
    assert code == 1
    assert out.index("FAIL") < out.index("Predicates") < out.index("Layers")
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt["verdict"] == "fail"
    assert receipt["predicates"]["protected_atlas_rewrite"]["outcome"] == "rewritten"
    assert run(["verify", str(tmp_path / "receipt.json")]) == 1


def test_too_few_documents_are_inconclusive(audit, place):
    pairs.probe(place / "few", documents=12)
    code, out, _ = audit("base", "light", probe="few/probes.yaml")
    assert code == 3
    assert "12 documents, fewer than 30" in out


def test_identical_checkpoints_are_inconclusive_and_say_so(audit):
    code, out, _ = audit("base", "base")
    assert code == 3
    assert "nothing was tuned: base and tuned hold the same values" in out
    assert "allow: [identical]" in out
    assert "register more documents" not in out


def test_a_policy_that_allows_it_lets_identical_checkpoints_pass_even_on_few_documents(audit, place):
    pairs.probe(place / "same", documents=12, policy=pairs.SAME)
    code, out, _ = audit("base", "base", probe="same/probes.yaml")
    assert code == 0
    assert "nothing was tuned: base and tuned hold the same values" in out


def test_an_attempt_at_nothing_is_refused_before_the_work(audit, place, tmp_path, monkeypatch):
    pairs.probe(place / "same", documents=12, policy=pairs.SAME)
    attempt = str(tmp_path / "attempt.json")
    assert audit("base", "base", "--receipt", attempt, probe="same/probes.yaml")[0] == 0
    monkeypatch.setattr(measuring, "replay_layers", lambda *_: pytest.fail("the audit was done all the same"))
    code, _, err = audit("base", "hard", "--attempt", attempt)
    assert code == 2
    assert err.startswith("atlas: E_ATTEMPT")
    assert "nothing was attempted; give the receipt of another tune of this base" in err


def test_json_is_one_object_on_standard_output(audit):
    code, out, _ = audit("base", "hard", "--json")
    summary = json.loads(out)
    assert summary["exit_code"] == code == 1
    assert summary["predicates"]["protected_atlas_rewrite"]["passed"] is False
    assert summary["failed"][0]["result"] == "fail"


def test_quiet_says_nothing(audit):
    assert audit("base", "light", "--quiet") == (0, "", "")


def must_be_one_line(code, err, expected_code, *mentions):
    lines = [line for line in err.splitlines() if line.startswith("atlas: E_")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert lines[0].startswith(f"atlas: {expected_code} ")
    for mention in mentions:
        assert mention in lines[0]
    return code


def test_an_existing_receipt_is_not_overwritten(audit, tmp_path):
    (tmp_path / "receipt.json").write_text("mine")
    code, _, err = audit("base", "light")
    assert must_be_one_line(code, err, "E_EXISTS", "--force") == 2
    assert (tmp_path / "receipt.json").read_text() == "mine"
    assert audit("base", "light", "--force")[0] == 0


def test_window_data_whose_receipt_was_moved_away_are_not_overwritten(audit, tmp_path):
    assert audit("base", "light")[0] == 0
    (tmp_path / "receipt.json").rename(tmp_path / "monday.json")
    before = (tmp_path / "receipt.windows.safetensors").read_bytes()
    code, _, err = audit("base", "hard", "--resume")
    assert must_be_one_line(code, err, "E_EXISTS", "receipt.windows.safetensors", "--force") == 2
    assert (tmp_path / "receipt.windows.safetensors").read_bytes() == before


@pytest.mark.parametrize("target", ["light/report.html", "base/config.json", "probe/probes.lock.json"])
def test_a_report_goes_neither_over_an_input_nor_into_a_checkpoint(audit, place, tmp_path, target):
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    code, _, err = audit("base", "light", "--force", "--format", f"html={place / target}")
    assert must_be_one_line(code, err, "E_OVER_INPUT", target, "choose another place") == 2
    assert {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} == before
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "target", ["light/receipt.json", "base/config.json", "base/../light/x.json", "probe/probes.lock.json"]
)
def test_a_receipt_goes_neither_over_an_input_nor_into_a_checkpoint(audit, place, target):
    """Its window data are a safetensors file: the checkpoint beside it would be another one from then on."""
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    code, _, err = audit("base", "light", "--receipt", str(place / target), "--force")
    assert must_be_one_line(code, err, "E_OVER_INPUT", "choose another place") == 2
    assert {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", [".", "", "/", "..", "receipt.txt"])
@pytest.mark.parametrize("option", ["--receipt", "--probe", "--policy-from", "--baseline"])
def test_a_path_that_names_no_file_is_one_line(audit, option, name, tmp_path):
    code, _, err = audit("base", "light", option, name)
    assert len(err.splitlines()) == 1
    assert err.startswith("atlas: E_")
    assert code in (2, 4)
    assert left_behind(tmp_path) == []


def test_an_output_without_our_characters_does_not_change_the_exit_code(place, tmp_path):
    command = [
        sys.executable,
        "-m",
        "moe_atlas",
        "audit",
        str(place / "base"),
        str(place / "hard"),
        "--probe",
    ]
    command += [str(place / "probe/probes.yaml"), "--receipt", str(tmp_path / "receipt.json")]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, env=ascii_only, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
    assert done.stdout.isascii()


def test_a_missing_checkpoint_is_named(audit, tmp_path):
    code, _, err = audit("base", "nowhere")
    assert must_be_one_line(code, err, "E_NOT_FOUND", "nowhere") == 4
    assert left_behind(tmp_path) == []


def test_an_unregistered_probe_names_the_command(audit, place):
    shutil.copytree(place / "probe", place / "unregistered", dirs_exist_ok=True)
    (place / "unregistered/probes.lock.json").unlink()
    code, _, err = audit("base", "light", probe="unregistered/probes.yaml")
    assert code == 2
    assert "atlas register" in err


def test_a_widened_budget_is_refused(audit, place):
    shutil.copytree(place / "probe", place / "widened", dirs_exist_ok=True)
    path = place / "widened/probes.yaml"
    path.write_text(path.read_text().replace("boundary: 0.08", "boundary: 0.8"))
    code, _, err = audit("base", "hard", probe="widened/probes.yaml")
    assert must_be_one_line(code, err, "E_PROBE_LOCK", "policy") == 4


def test_a_wrong_pair_is_refused_with_every_difference(audit, place):
    tiny.save("qwen3_moe", place / "other", num_experts=6, moe_intermediate_size=8)
    code, _, err = audit("base", "other")
    assert must_be_one_line(code, err, "E_PAIR", "experts: 8 ≠ 6", "expert width: 12 ≠ 8") == 4


def test_a_truncated_shard_is_refused(audit, place, tmp_path):
    shutil.copytree(place / "light", place / "cut", dirs_exist_ok=True)
    file = place / "cut/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    code, _, err = audit("base", "cut")
    assert code == 4
    assert "model.safetensors" in err
    assert left_behind(tmp_path) == []


def test_a_nan_in_the_base_is_refused_and_in_the_tuned_checkpoint_fails(audit, place):
    def poison(tensors):
        tensors["model.layers.1.mlp.experts.7.up_proj.weight"][0, 0] = torch.nan

    pairs.variant(place / "base", place / "poisoned", poison)
    code, _, err = audit("poisoned", "base")
    assert must_be_one_line(code, err, "E_NONFINITE", "experts.7.up_proj") == 4
    assert audit("base", "poisoned")[0] == 1


@pytest.mark.parametrize(
    ("rule", "tuned", "expected"), [("must_change", "base", 1), ("must_not_change", "light", 1)]
)
def test_weight_rules_catch_a_tune_that_did_not_land_or_moved_too_much(audit, place, rule, tuned, expected):
    policy = pairs.POLICY | {"weights": {"must_change": [], "must_not_change": []} | {rule: ["attention"]}}
    pairs.probe(place / rule, policy=policy)
    code, out, _ = audit("base", tuned, probe=f"{rule}/probes.yaml")
    assert code == expected
    assert "attention" in out


def test_token_ids_beyond_the_vocabulary_are_refused(audit, place):
    pairs.probe(place / "large", vocab=60)
    code, _, err = audit("base", "light", probe="large/probes.yaml")
    assert must_be_one_line(code, err, "E_PROBE_TOKENS", "document prose-0", "has ids 0 to 47 only") == 4


@pytest.mark.parametrize(
    "extra", [["--memory", "10MiB"], ["--memory", "lots"], ["--dtype", "int8"], ["--threads", "0"]]
)
def test_options_that_cannot_be_met(audit, extra, tmp_path):
    code, _, err = audit("base", "light", *extra)
    assert code == (6 if extra[1] == "10MiB" else 2)
    assert "Traceback" not in err
    assert left_behind(tmp_path) == []


def test_a_closed_output_does_not_change_the_exit_code(place, tmp_path):
    command = [sys.executable, "-m", "moe_atlas", "audit", str(place / "base"), str(place / "hard")]
    command += ["--probe", str(place / "probe/probes.yaml"), "--receipt", str(tmp_path / "receipt.json")]
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, timeout=120)
    assert closed.returncode == 1, closed.stderr


def test_an_existing_but_unreadable_command_line_is_usage(capsys):
    assert run(["audit"]) == 2
    assert run(["nonsense"]) == 2
    assert "Traceback" not in capsys.readouterr().err
