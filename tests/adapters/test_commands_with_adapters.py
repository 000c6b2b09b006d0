"""The commands that take an adapter: its base is named with it, and both are in what they say and check."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_atlas.cli import run
from scripts.oracle import tiny
from tests.support import adapters, pairs

MODEL, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("commands")
    base = tiny.save("qwen3_moe", root / "base.ckpt", seed=5)
    adapters.train(base, root / "adapter", size=0.05, target_modules=["q_proj", "o_proj"])
    zero = adapters.train(base, root / "zero", target_modules=["q_proj"])
    tensors = load_file(zero / MODEL)
    save_file({n: t if "lora_A" in n else torch.zeros_like(t) for n, t in tensors.items()}, zero / MODEL)
    pairs.probe(root / "probe")
    return root


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def atlas(here, capsys):
    def call(*words):
        code = run(list(words))
        return code, *capsys.readouterr()

    return call


def audit(atlas, adapter="adapter", *options):
    words = ["audit", "base.ckpt", adapter, "--probe", "probe/probes.yaml", "--force", *options]
    code, out, err = atlas(*words)
    return code, out, json.loads(open("receipt.json").read()) if code in (0, 1, 3) else err


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_audit_names_both_and_says_how_the_adapter_was_read(atlas, here):
    code, out, receipt = audit(atlas)
    assert code == 0
    assert "base.ckpt → base.ckpt+adapter" in out
    assert "adapter: 4 modules of rank 4, alpha 6, merged as PEFT merges" in " ".join(out.split())
    facts = receipt["checkpoints"]["tuned"]["adapter"]
    assert (facts["as"], facts["modules"], facts["replaced"], facts["tensors"]) == ("merged", 4, 0, 4)
    assert (facts["named_base"], facts["other_base"], facts["changes_nothing"]) != (None, True, True)


def test_a_live_adapter_is_recorded_as_such(atlas, here):
    code, out, receipt = audit(atlas, "adapter", "--adapter-as", "live")
    assert code == 0
    assert receipt["checkpoints"]["tuned"]["adapter"]["as"] == "live"
    assert "kept as a sum in float32" in " ".join(out.split())


def test_an_adapter_that_changes_nothing_is_named(atlas, here):
    code, out, receipt = audit(atlas, "zero")
    assert code == 3
    assert "this adapter changes nothing" in " ".join(out.split())
    assert {"adapter-zero", "nothing-tuned"} <= {row["code"] for row in receipt["warnings"]}


def test_an_adapter_of_a_base_of_another_name_is_named(atlas, here):
    edited(here / "adapter" / CONFIG, base_model_name_or_path="org/another-base")
    code, out, receipt = audit(atlas)
    assert code == 0
    assert "names org/another-base as its base" in " ".join(out.split())
    assert receipt["checkpoints"]["tuned"]["adapter"]["other_base"]


def test_a_plan_takes_an_adapter(atlas, here):
    code, out, _ = atlas("plan", "base.ckpt", "adapter", "--probe", "probe/probes.yaml", "--json")
    assert code == 0
    assert json.loads(out)["bytes"]["tuned"] > 0


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "adapter"),
        ("baseline", "adapter", "--probe", "probe/probes.yaml"),
        ("audit", "adapter", "base.ckpt", "--probe", "probe/probes.yaml"),
        ("audit", "adapter", "adapter", "--probe", "probe/probes.yaml"),
    ],
    ids=lambda words: f"{words[0]} {words[1]}",
)
def test_an_adapter_alone_is_refused_with_what_to_give(atlas, here, words):
    code, _, err = atlas(*words)
    assert code == 4
    assert err.count("\n") == 1
    for said in (
        "E_FORMAT adapter",
        "an adapter, not a checkpoint",
        "atlas audit BASE ADAPTER",
        "--like BASE",
    ):
        assert said in err


def test_a_layout_without_an_adapter_is_a_mistake(atlas, here):
    words = ("--probe", "probe/probes.yaml", "--adapter-layout", "rank_major")
    code, _, err = atlas("audit", "base.ckpt", "base.ckpt", *words)
    assert code == 2
    assert "the tuned checkpoint is no adapter" in err


def test_options_of_adapters_without_an_adapter_are_mistakes(atlas, here):
    assert atlas("inspect", "base.ckpt", "--adapter-layout", "rank_major")[0] == 2
    audit(atlas)
    assert atlas("verify", "receipt.json", "--like", "base.ckpt")[0] == 2
    for words in (["rank_major", "grouped_by_expert"], ["rank_first"]):
        given = [part for word in words for part in ("--adapter-layout", word)]
        code, _, err = atlas("inspect", "adapter", "--like", "base.ckpt", *given)
        assert code == 2
        assert "rank_major or grouped_by_expert and a_on_input or a_on_output" in err


def test_a_file_of_an_adapter_is_refused_with_what_to_give(atlas, here):
    code, _, err = atlas("audit", "base.ckpt", f"adapter/{MODEL}", "--probe", "probe/probes.yaml")
    assert code == 4
    assert "give the adapter's folder, with its base" in err


def test_a_base_where_no_adapter_is_given_is_refused(atlas, here):
    code, _, err = atlas("inspect", "base.ckpt", "--like", "base.ckpt")
    assert code == 4
    assert CONFIG in err


def test_inspect_describes_what_an_adapter_makes_of_its_base(atlas, here):
    code, out, _ = atlas("inspect", "adapter", "--like", "base.ckpt", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["path"], found["family"], found["shards"]) == ("base.ckpt+adapter", "qwen3_moe", 2)
    assert (found["adapter"]["tensors"], found["adapter"]["ranks"]) == (4, [4])
    code, out, _ = atlas("inspect", "adapter", "--like", "base.ckpt")
    assert code == 0
    assert "4 modules of rank 4" in out


VERIFY = ("verify", "receipt.json", "--checkpoint", "adapter", "--like", "base.ckpt")


def test_verify_holds_both_against_the_receipt(atlas, here):
    audit(atlas)
    assert atlas(*VERIFY)[0] == 0
    code, out, _ = atlas("verify", "receipt.json", "--checkpoint", "base.ckpt")
    assert code == 5
    assert "--like BASE" in out


@pytest.mark.parametrize("which", ["alpha", "factor", "base"])
def test_verify_and_attest_notice_what_changed(atlas, here, which):
    audit(atlas)
    if which == "alpha":
        edited(here / "adapter" / CONFIG, lora_alpha=7)
    else:
        file = here / ("adapter" if which == "factor" else "base.ckpt")
        path = file / (MODEL if which == "factor" else "model.safetensors")
        tensors = load_file(path)
        name = sorted(tensors)[0]
        save_file(tensors | {name: tensors[name] + 1}, path, {"format": "pt"})
    code, out, _ = atlas(*VERIFY)
    assert code == 5
    assert ("adapter.config_sha256" if which == "alpha" else "tuned.digest") in out
    code, _, err = atlas("attest", "receipt.json", "--checkpoint", "adapter", "--like", "base.ckpt")
    assert code == 5
    assert "E_DIGEST" in err


def test_a_statement_covers_the_adapters_files(atlas, here):
    audit(atlas)
    (here / "out").mkdir()
    words = (
        "attest",
        "receipt.json",
        "--checkpoint",
        "adapter",
        "--like",
        "base.ckpt",
        "-o",
        "out/statement.json",
    )
    code, _, err = atlas(*words)
    assert (code, err) == (0, "")
    manifest = (here / "out/SHA256SUMS").read_text()
    assert {MODEL, CONFIG} <= {line.split("  ")[1] for line in manifest.splitlines()}
    assert "model.safetensors" not in {line.split("  ")[1] for line in manifest.splitlines()}
    checked = subprocess.run(
        ["sha256sum", "-c", str(here / "out/SHA256SUMS")], cwd=here / "adapter", check=False
    )
    assert checked.returncode == 0


def test_an_interrupted_audit_of_other_settings_is_not_continued(atlas, here, monkeypatch):
    from moe_atlas.auditing.resume import StateFile

    class Killed(BaseException):
        pass

    real = StateFile.save

    def save(self, walk, done):
        real(self, walk, done)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(StateFile, "save", save)
        with pytest.raises(Killed):
            audit(atlas, "adapter", "--resume")
    edited(here / "adapter" / CONFIG, lora_alpha=7)
    code, _, err = audit(atlas, "adapter", "--resume")
    assert code == 2
    assert "the tuned checkpoint differ" in err
    edited(here / "adapter" / CONFIG, lora_alpha=6)
    assert audit(atlas, "adapter", "--resume")[0] == 0
