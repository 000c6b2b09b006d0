"""A run on the command line: baselines, audits and resumes recorded, read back, gated on."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import yaml

from moe_atlas.cli import run
from moe_atlas.receipt.window_file import decode_windows
from moe_atlas.receipt.write import write_receipt
from scripts.oracle import tiny
from tests.support import pairs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    base = tiny.save("qwen3_moe", root / "base", seed=5)
    pairs.variant(base, root / "light", pairs.jitter(3e-3, lambda name: "self_attn" in name))
    pairs.variant(base, root / "resharded", lambda tensors: None, shards=3)
    pairs.variant(base, root / "router", pairs.jitter(1e-2, lambda name: "layers.1.mlp.gate." in name))
    pairs.probe(root / "probe")
    return root


@pytest.fixture
def atlas(place, tmp_path, capsys):
    def call(*arguments):
        shared = ["--runs", str(tmp_path / "runs")]
        if arguments[0] in ("audit", "baseline"):
            shared += ["--probe", str(place / "probe/probes.yaml"), "--quiet"]
        code = run([*map(str, arguments), *shared])
        return code, *capsys.readouterr()

    return call


def test_a_run_from_baseline_to_gate(atlas, place, tmp_path):
    baseline = ("baseline", place / "base", "--receipt", tmp_path / "b.json", "--run", "sft", "--step", 0)
    assert atlas(*baseline) == (0, "", "")
    assert atlas("gate", "sft", "--quiet")[0] == 3  # nothing compared yet
    audit = ("audit", place / "base", place / "light", "--receipt", tmp_path / "a.json", "--run", "sft")
    assert atlas(*audit, "--step", 100) == (0, "", "")
    assert atlas("gate", "sft", "--quiet")[0] == 0
    ledger = tmp_path / "runs/sft/ledger.jsonl"
    before = ledger.read_bytes()
    code, _, err = atlas("history", "sft", "-o", ledger, "--force")
    assert (code, err[:20]) == (2, "atlas: E_OVER_INPUT ")
    assert ledger.read_bytes() == before
    code, out, _ = atlas("history", "sft", "--json")
    facts = json.loads(out)
    assert (code, facts["state"], facts["receipts_checked"]) == (0, "clear", 2)
    assert [(entry["kind"], entry["body"]["step"]) for entry in facts["entries"]] == [
        ("baseline", 0),
        ("audit", 100),
    ]
    receipt = json.loads((tmp_path / "a.json").read_text())
    head = receipt["parent"]["ledger"]
    assert (head["run"], head["seq"]) == ("sft", 0)
    (tmp_path / "runs/sft/ledger.jsonl").write_bytes(
        (tmp_path / "runs/sft/ledger.jsonl").read_bytes().splitlines(keepends=True)[0]
    )
    code, _, err = atlas("gate", "sft")
    assert code == 5
    assert err.startswith("atlas: E_LEDGER_CUT")


@pytest.mark.parametrize(
    ("resumed", "same", "changed"),
    [("base", True, {}), ("resharded", True, {}), ("router", False, {"router": [1]})],
)
def test_a_resume_says_whether_the_bytes_are_the_same_tensors(atlas, place, tmp_path, resumed, same, changed):
    first = ("baseline", place / "base", "--receipt", tmp_path / "b.json", "--run", "sft")
    assert atlas(*first)[0] == 0
    again = ("baseline", place / resumed, "--receipt", tmp_path / "r.json", "--run", "sft", "--step", 100)
    assert atlas(*again, "--reason", "node failure", "--previous", tmp_path / "b.json")[0] == 0
    receipt = json.loads((tmp_path / "r.json").read_text())
    parent = receipt["parent"]
    assert parent["receipt"]["same_tensors"] is same
    found = {row["class"]: row["changed_layers"] for row in parent["receipt"]["classes"] if not row["same"]}
    assert found == changed
    assert {"router", "routed_expert", "attention"} <= {row["class"] for row in parent["receipt"]["classes"]}
    licensed = [claim["claim"] for claim in receipt["claims"] if claim["status"] == "licensed"]
    assert not [name for name in licensed if "preserv" in name]
    entries = json.loads(atlas("history", "sft", "--json")[1])["entries"]
    assert [entry["kind"] for entry in entries] == ["baseline", "resume"]
    assert entries[1]["body"]["reason"] == "node failure"
    assert atlas("gate", "sft", "--quiet")[0] == 3


def test_an_audit_as_the_previous_receipt_stands_for_its_tuned_checkpoint(atlas, place, tmp_path):
    audit = ("audit", place / "base", place / "light", "--receipt", tmp_path / "a.json", "--run", "sft")
    assert atlas(*audit)[0] == 0
    for number, (checkpoint, same) in enumerate([("light", True), ("base", False)]):
        path = tmp_path / f"{number}.json"
        assert (
            atlas("baseline", place / checkpoint, "--receipt", path, "--previous", tmp_path / "a.json")[0]
            == 0
        )
        assert json.loads(path.read_text())["parent"]["receipt"]["same_tensors"] is same


def test_a_result_that_is_not_whole_is_no_reference_and_is_not_recorded(atlas, place, tmp_path):
    receipt = tmp_path / "b.json"
    assert atlas("baseline", place / "base", "--receipt", receipt)[0] == 0
    receipt.write_bytes(receipt.read_bytes().replace(b'"kind": "baseline"', b'"kind": "baselinf"'))
    resumed = ("baseline", place / "base", "--receipt", tmp_path / "r.json", "--run", "sft")
    code, _, err = atlas(*resumed, "--previous", receipt)
    assert code == 5
    assert err.startswith("atlas: E_RECEIPT")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "b.windows.safetensors"]


def test_a_damaged_ledger_stops_an_audit_before_it_starts(atlas, place, tmp_path):
    (tmp_path / "runs/sft").mkdir(parents=True)
    (tmp_path / "runs/sft/ledger.jsonl").write_text("{}\n")
    audit = ("audit", place / "base", place / "light", "--receipt", tmp_path / "a.json", "--run", "sft")
    code, _, err = atlas(*audit)
    assert code == 5
    assert err.startswith("atlas: E_LEDGER ")
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("extra", [("--step", 3), ("--run", "../up"), ("--run", "")])
def test_a_place_in_no_run_is_usage(atlas, place, tmp_path, extra):
    code, _, err = atlas("audit", place / "base", place / "light", "--receipt", tmp_path / "a.json", *extra)
    assert code == 2
    assert err.startswith("atlas: E_RUN")
    assert list(tmp_path.iterdir()) == []


def test_reading_commands_never_import_torch():
    program = (
        "import sys\n"
        "from moe_atlas.cli import run\n"
        "for command in ('verify', 'history', 'gate'):\n"
        "    assert run([command, 'nowhere']) == 2, command\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def governed(place, tmp_path):
    """A probe set registered under a central policy, and the central file."""
    folder = tmp_path / "governed"
    shutil.copytree(place / "probe", folder)
    (folder / "probes.lock.json").unlink()
    probes = folder / "probes.yaml"
    config = yaml.safe_load(probes.read_text())
    central = folder / "central.yaml"
    policy = config.pop("policy")
    central.write_text(yaml.safe_dump({"schema": "atlas/policy/v1", "name": "release", "policy": policy}))
    probes.write_text(yaml.safe_dump(config))
    assert run(["register", str(probes), "--policy-from", str(central)]) == 0
    return probes, central


def test_an_audit_under_a_central_policy(place, tmp_path, governed, capsys):
    probes, central = governed
    receipt = tmp_path / "r.json"
    audit = ["audit", str(place / "base"), str(place / "light"), "--probe", str(probes), "--quiet"]
    audit += ["--receipt", str(receipt)]
    assert run([*audit, "--policy-from", str(central)]) == 0
    lock = json.loads(receipt.read_text())["probe"]["lock"]
    assert lock["policy_from"] == {
        "name": "release",
        "sha256": hashlib.sha256(central.read_bytes()).hexdigest(),
    }
    assert lock["sha256"] == hashlib.sha256(probes.with_suffix(".lock.json").read_bytes()).hexdigest()
    assert lock["registered_at"]
    verify = ["verify", str(receipt), "--probe", str(probes)]
    assert run([*verify, "--policy-from", str(central)]) == 0
    assert run(verify) == 5  # without the policy the probe file says less than was registered
    capsys.readouterr()
    widened = {"policy": yaml.safe_load(central.read_text().replace("0.08", "0.8"))["policy"]}
    probes.write_text(probes.read_text() + yaml.safe_dump(widened))
    assert run([*audit, "--force", "--policy-from", str(central)]) == 4
    assert "atlas: E_POLICY probes.yaml" in capsys.readouterr().err
    central.write_text(central.read_text().replace("0.08", "0.8"))
    assert run([*verify, "--policy-from", str(central)]) == 5
    assert "policy_from" in capsys.readouterr().out


def test_verify_lists_what_the_probe_file_and_its_lock_do_not_bear_out(place, tmp_path, capsys):
    receipt, probes = tmp_path / "r.json", place / "probe/probes.yaml"
    audit = ["audit", str(place / "base"), str(place / "light"), "--quiet", "--receipt", str(receipt)]
    assert run([*audit, "--probe", str(probes)]) == 0
    assert run(["verify", str(receipt), "--probe", str(probes)]) == 0
    body = json.loads(receipt.read_text())
    facts = {key: value for key, value in body.items() if key != "evidence"}
    arrays = decode_windows(receipt.with_name("r.windows.safetensors").read_bytes(), "windows")
    capsys.readouterr()
    other_lock = {"sha256": "0" * 64, "registered_at": "2020-01-01", "policy_sha256": "0" * 64}
    edits = {
        "probe.protected_layers": ("protected_layers", [0]),
        "probe.policy.confidence": ("policy", body["probe"]["policy"] | {"confidence": 0.6}),
        "probe.lock.registered_at": ("lock", body["probe"]["lock"] | {"registered_at": "2020-01-01"}),
        "probe.lock.predecessor": ("lock", body["probe"]["lock"] | {"predecessor": other_lock}),
        "probe.lock.policy_from": (
            "lock",
            body["probe"]["lock"] | {"policy_from": {"name": "x", "sha256": "0" * 64}},
        ),
    }
    for where, (key, value) in edits.items():
        write_receipt(facts | {"probe": facts["probe"] | {key: value}}, arrays, receipt, force=True)
        assert run(["verify", str(receipt), "--integrity-only"]) == 0
        assert run(["verify", str(receipt), "--probe", str(probes)]) == 5
        assert where in capsys.readouterr().out
