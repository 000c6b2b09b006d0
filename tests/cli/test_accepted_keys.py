"""`--accept-config-key`: on the record, on the screen, and not under a central policy that does not allow it."""

from __future__ import annotations

import json
import logging

import pytest
import yaml

from moe_atlas import AuditOptions
from moe_atlas import audit as run_audit
from moe_atlas.cli import run
from moe_atlas.integrations import CheckpointGate
from moe_atlas.receipt.verify import VerifyReport, _check_probe
from scripts.oracle import tiny
from tests.support import pairs

OPTION = ("--accept-config-key", "mystery=[1, 2.5]")
RECORDED = [{"key": "mystery", "value": "[1, 2.5]"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("accepted")
    base = tiny.save("qwen3_moe", root / "base.ckpt", seed=5)
    tuned = pairs.variant(base, root / "tuned.ckpt", pairs.jitter(3e-3, lambda name: "self_attn" in name))
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps(config | {"mystery": [1, 2.5]}))
    pairs.probe(root)
    return root


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    return tmp_path


def audit(*options):
    return ["audit", "base.ckpt", "tuned.ckpt", "--probe", "probes.yaml", *options]


def test_without_the_option_the_audit_is_refused_and_says_how_to_go_on(here, capsys):
    assert run(audit("--receipt", str(here / "r.json"))) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "tuned.ckpt: config.json: mystery = [1, 2.5]" in said
    assert "--accept-config-key 'mystery=[1, 2.5]'" in said


def test_what_is_accepted_is_recorded_shown_and_verified(here, capsys):
    receipt = here / "r.json"
    assert run(audit("--receipt", str(receipt), *OPTION)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "keys that nothing reads and that were accepted by hand: mystery = [1, 2.5]" in said
    facts = json.loads(receipt.read_text())
    assert facts["checkpoints"]["tuned"]["accepted_config_keys"] == RECORDED
    assert facts["checkpoints"]["base"]["accepted_config_keys"] == []
    assert [one["code"] for one in facts["warnings"]].count("accepted-config-keys") == 1
    assert run(["verify", str(receipt), "--probe", "probes.yaml", "--checkpoint", "tuned.ckpt"]) == 0


def test_nothing_is_recorded_of_a_key_that_nothing_holds(here):
    receipt = here / "r.json"
    assert run(["baseline", "base.ckpt", "--probe", "probes.yaml", "--receipt", str(receipt), *OPTION]) == 0
    assert json.loads(receipt.read_text())["checkpoints"]["base"]["accepted_config_keys"] == []


def test_every_command_that_opens_a_checkpoint_takes_the_option(here, capsys):
    assert run(["inspect", "tuned.ckpt"]) == 4
    assert run(["inspect", "tuned.ckpt", "--json", *OPTION]) == 0
    assert json.loads(capsys.readouterr().out)["accepted_config_keys"] == RECORDED
    assert run(["inspect", "tuned.ckpt", *OPTION]) == 0
    assert "mystery = [1, 2.5]: nothing reads it" in " ".join(capsys.readouterr().out.split())
    plan = ["plan", "base.ckpt", "tuned.ckpt", "--probe", "probes.yaml"]
    assert run(plan) == 4
    assert run([*plan, "--json", *OPTION]) == 0
    probed = ["--probe", "probes.yaml", "--receipt", str(here / "b.json")]
    assert run(["baseline", "tuned.ckpt", *probed]) == 4
    assert run(["baseline", "tuned.ckpt", *probed, *OPTION]) == 0
    found = json.loads((here / "b.json").read_text())
    assert found["checkpoints"]["base"]["accepted_config_keys"] == RECORDED


def test_an_option_without_a_value_is_a_usage_error(here, capsys):
    assert run(audit("--accept-config-key", "mystery")) == 2
    assert "E_ACCEPT" in capsys.readouterr().err


def test_the_interface_and_the_gate_take_it_as_a_mapping(place, here, caplog):
    options = AuditOptions(accepted={"mystery": [1, 2.5]})
    made = run_audit("base.ckpt", "tuned.ckpt", "probes.yaml", receipt=here / "r.json", options=options)
    assert made.body["checkpoints"]["tuned"]["accepted_config_keys"] == RECORDED
    caplog.set_level(logging.INFO)
    gate = CheckpointGate(
        "base.ckpt", "probes.yaml", here / "gates", wait=True, accept_config_keys={"mystery": [1, 2.5]}
    )
    assert gate("tuned.ckpt", 1) is False
    assert gate.results[0].verdict == "pass"


@pytest.mark.parametrize("allow", [[], ["config_keys"]])
def test_a_central_policy_must_allow_it(place, tmp_path, monkeypatch, capsys, allow):
    pairs.probe(tmp_path)
    config = yaml.safe_load((tmp_path / "probes.yaml").read_text())
    central = {
        "schema": "atlas/policy/v1",
        "name": "release",
        "policy": config.pop("policy") | {"allow": allow},
    }
    (tmp_path / "central.yaml").write_text(yaml.safe_dump(central))
    (tmp_path / "probes.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    governed = ["--probe", "probes.yaml", "--policy-from", "central.yaml"]
    assert run(["register", "probes.yaml", "--policy-from", "central.yaml", "--force"]) == 0
    pair = [str(place / "base.ckpt"), str(place / "tuned.ckpt")]
    assert run(["audit", *pair, *governed, *OPTION]) == (0 if allow else 4)
    assert run(["plan", *pair, *governed, *OPTION]) == (0 if allow else 4)
    said = capsys.readouterr().err
    assert allow or "E_POLICY" in said
    assert allow or "config.json: mystery" in said
    assert allow or "allow: [config_keys]" in said
    # Keys that nobody holds are no acceptance.
    assert run(["baseline", pair[0], *governed, *OPTION]) == 0


def test_a_receipt_that_accepts_under_a_policy_that_allows_none_is_no_receipt(place, tmp_path):
    pairs.probe(tmp_path)
    config = yaml.safe_load((tmp_path / "probes.yaml").read_text())
    central = {"schema": "atlas/policy/v1", "name": "release", "policy": config.pop("policy")}
    (tmp_path / "central.yaml").write_text(yaml.safe_dump(central))
    (tmp_path / "probes.yaml").write_text(yaml.safe_dump(config))
    probe, policy = tmp_path / "probes.yaml", tmp_path / "central.yaml"
    assert run(["register", str(probe), "--policy-from", str(policy), "--force"]) == 0
    receipt = tmp_path / "r.json"
    made = ["baseline", str(place / "base.ckpt"), "--probe", str(probe), "--policy-from", str(policy)]
    assert run([*made, "--receipt", str(receipt)]) == 0
    facts = json.loads(receipt.read_text())
    report = VerifyReport()
    _check_probe(facts, probe, policy, report)
    assert report.mismatches == []
    facts["checkpoints"]["base"]["accepted_config_keys"] = RECORDED
    _check_probe(facts, probe, policy, report)
    assert [one.path for one in report.mismatches] == ["checkpoints.base.accepted_config_keys"]
