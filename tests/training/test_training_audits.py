"""A training checkpoint gives the receipt of the model that was saved, on every command that takes one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moe_atlas.auditing.run import measure
from moe_atlas.cli import run
from moe_atlas.errors import Exit
from moe_atlas.options import AuditOptions
from moe_atlas.receipt.write import write_receipt
from scripts.oracle import tiny
from tests.support import pairs, trainings

STORED = ("path", "files")
"""Facts of a checkpoint that say where it is stored, and what lies beside it."""
KINDS = {
    "hub": {"hub": True, "files": 2, "cut": "columns"},
    "dcp": {"wrapped": "model", "optimizer": True},
    "fsdp": {"inside": "pytorch_model_fsdp_0", "wrapped": "model", "cut": "columns"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("trainings")
    base = tiny.save("qwen3_moe", root / "base", seed=5)
    tuned = pairs.variant(base, root / "tuned", pairs.jitter(3e-3, lambda name: "self_attn" in name))
    for kind, options in KINDS.items():
        inside = options.get("inside", "")
        trainings.write(tuned, root / kind / inside, processes=2, **options)
    pairs.probe(root / "probe")
    return root


def audited(base, tuned, probe, folder):
    folder.mkdir()
    facts, arrays = measure(base, tuned, probe, AuditOptions())
    return write_receipt(facts, arrays, folder / "receipt.json"), arrays


def alike(receipt):
    """A receipt without times and without what says where the tuned checkpoint is stored."""
    left = json.loads(json.dumps(receipt))
    del left["timing"]
    del left["evidence"]["receipt_sha256"]
    for key in STORED:
        left["checkpoints"]["tuned"].pop(key)
    return left


@pytest.mark.parametrize("kind", KINDS)
def test_the_receipt_is_that_of_the_plain_folder(place, tmp_path, kind):
    probe = place / "probe" / "probes.yaml"
    expected, windows = audited(place / "base", place / "tuned", probe, tmp_path / "plain")
    found, arrays = audited(place / "base", place / kind, probe, tmp_path / "cut")
    assert alike(found) == alike(expected)
    assert all(np.array_equal(arrays[name], windows[name], equal_nan=True) for name in windows)
    for key in ("digest", "config_sha256", "bytes", "bytes_read"):
        assert found["checkpoints"]["tuned"][key] == expected["checkpoints"]["tuned"][key]


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_takes_it(place, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    base, tuned, saved = (str(place / name) for name in ("base", "tuned", kind))
    probe = ["--probe", str(place / "probe" / "probes.yaml"), "--quiet"]
    assert run(["inspect", saved, "--like", base, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "qwen3_moe"
    assert facts["shards"] == len(
        [f for f in (place / kind).rglob("*") if f.suffix in (".distcp", ".safetensors")]
    )
    assert run(["audit", base, saved, *probe, "--receipt", "pair.json"]) == 0
    assert run(["verify", "pair.json", "--checkpoint", saved, "--like", base, "--json"]) == 0
    assert run(["attest", "pair.json", "--checkpoint", saved, "--like", base]) == 0
    manifest = (tmp_path / "SHA256SUMS").read_text()
    files = [file for file in (place / kind).rglob("*") if file.is_file()]
    assert all(file.relative_to(place / kind).as_posix() in manifest for file in files)
    assert run(["baseline", saved, "--like", base, *probe, "--receipt", "saved.json"]) == 0
    assert run(["baseline", tuned, *probe, "--receipt", "exported.json", "--previous", "saved.json"]) == 0
    exported = json.loads((tmp_path / "exported.json").read_text())
    assert exported["parent"]["receipt"]["same_tensors"] is True
    assert run(["baseline", base, *probe, "--receipt", "other.json", "--previous", "saved.json"]) == 0
    other = json.loads((tmp_path / "other.json").read_text())
    assert other["parent"]["receipt"]["same_tensors"] is False
    capsys.readouterr()
    assert run(["verify", "pair.json", "--checkpoint", base, "--json"]) == Exit.CHANGED
