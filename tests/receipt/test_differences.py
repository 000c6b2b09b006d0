"""What a server takes from a checkpoint's folder: listed in the receipt, said in every report, held to afterwards."""

from __future__ import annotations

import json
import shutil

import pytest

from moe_atlas.cli import run
from moe_atlas.derivation.derive import derive
from moe_atlas.receipt.canonical import encode_receipt
from moe_atlas.receipt.verify import verify
from scripts.oracle import tiny
from tests.receipt import synthetic
from tests.support import pairs

LIGHT = pairs.jitter(0.001, lambda name: "norm" not in name)
FORMATS = ("markdown", "html", "junit")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """An audit of a base, and of a light tune whose configuration and folder were changed."""
    root = tmp_path_factory.mktemp("beside")
    base = tiny.save("deepseek_v3", root / "base", seed=3)
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "transformers_version": "4"}')
    (base / "modeling_old.py").write_text("x")
    (base / "README.md").write_text("base")
    tuned = pairs.variant(base, root / "tuned", LIGHT)
    (tuned / "generation_config.json").write_text('{"eos_token_id": 5}')
    (tuned / "pytorch_model.bin").write_bytes(b"pickled")
    (tuned / "modeling_new.py").write_text("x = 1")
    (tuned / "tokenizer.json").write_text("{}")
    (tuned / "strange").write_text("x")
    (tuned / "README.md").write_text("tuned")
    edit(
        tuned, eos_token_id=7, max_position_embeddings=1 << 20, auto_map={"AutoModel": "modeling_new.X"},
        transformers_version="9", temperature=0.5,
    )  # fmt: skip
    probes = pairs.probe(root / "probe")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        command = ["audit", "base", "tuned", "--probe", str(probes), "--dtype", "float32", "--quiet"]
        assert run([*command, "--receipt", "receipt.json"]) == 0
    return root


def messages(receipt):
    return {w["code"]: w["message"] for w in receipt["warnings"]}


def test_the_receipt_lists_every_difference_and_the_warnings_name_the_served_ones_first(audited):
    receipt = json.loads((audited / "receipt.json").read_text())
    assert [(row["key"], row["rank"]) for row in receipt["differences"]["config"]] == [
        ("auto_map.AutoModel", "served"),
        ("eos_token_id", "served"),
        ("max_position_embeddings", "served"),
        ("temperature", "other"),
        ("transformers_version", "cosmetic"),
    ]
    assert [(row["file"], row["change"]) for row in receipt["differences"]["files"]] == [
        ("pytorch_model.bin", "added"),
        ("modeling_new.py", "added"),
        ("generation_config.json", "changed"),
        ("tokenizer.json", "added"),
        ("strange", "added"),
        ("README.md", "changed"),
        ("modeling_old.py", "removed"),
    ]
    said = messages(receipt)
    assert "weights that nothing read and a loader might take: pytorch_model.bin" in said["weights-beside"]
    assert said["server-files"].endswith(
        "modeling_new.py added, generation_config.json changed, tokenizer.json added, modeling_old.py removed"
    )
    assert said["other-files"].endswith(": strange added")
    assert "eos_token_id null → 7" in said["server-config"]
    assert "max_position_embeddings 64 → 1048576" in said["server-config"]
    assert 'auto_map.AutoModel absent → "modeling_new.X"' in said["server-config"]
    assert said["other-config"].endswith("temperature absent → 0.5")
    assert "README" not in str(said)
    assert "transformers_version" not in str(said)
    for side in ("base", "tuned"):
        assert all(row["sha256"] for row in receipt["checkpoints"][side]["files"]["listed"])


def test_every_form_of_a_report_names_them(audited, capsys, monkeypatch):
    monkeypatch.chdir(audited)
    outputs = [f"--format={form}=report.{form}" for form in FORMATS]
    assert run(["report", "receipt.json", *outputs, "--force"]) == 0
    assert run(["report", "receipt.json"]) == 0
    texts = {form: (audited / f"report.{form}").read_text() for form in FORMATS}
    texts["terminal"] = capsys.readouterr().out
    for form, text in texts.items():
        flat = " ".join(text.replace("│", " ").split())
        for word in ("pytorch", "modeling", "generation"):
            assert word in flat, form
        rest = (
            ("server-config", "other-config") if form == "markdown" else ("eos", "embeddings", "temperature")
        )
        assert all(word in flat for word in rest), form


def test_the_same_checkpoint_verifies_and_whatever_a_server_takes_is_held_to(audited, tmp_path):
    tuned = shutil.copytree(audited / "tuned", tmp_path / "tuned")
    assert verify(audited / "receipt.json", checkpoint=tuned).mismatches == []
    (tuned / "README.md").write_text("a model card, written later")
    (tuned / "trainer_state.json").write_text("{}")
    assert verify(audited / "receipt.json", checkpoint=tuned).mismatches == []
    edit(tuned, eos_token_id=8, added=1)
    (tuned / "modeling_new.py").write_text("x = 2")
    (tuned / "tokenizer.json").unlink()
    (tuned / "model.gguf").write_bytes(b"x")
    found = verify(audited / "receipt.json", checkpoint=tuned).mismatches
    assert [one.path.removeprefix("checkpoints.tuned.") for one in found] == [
        "config_sha256", "config.added", "config.eos_token_id", "files.model.gguf", "files.modeling_new.py",
        "files.tokenizer.json",
    ]  # fmt: skip
    assert found[2].problem == "expected 7, the checkpoint has 8"
    assert run(["verify", str(audited / "receipt.json"), "--checkpoint", str(tuned)]) == 5


def test_a_statement_covers_what_was_read_and_names_the_rest(audited, tmp_path, capsys):
    command = ["attest", str(audited / "receipt.json"), "-o", str(tmp_path / "s.json"), "--checkpoint"]
    assert run([*command, str(audited / "tuned")]) == 0
    names = [line.split("  ")[1] for line in (tmp_path / "SHA256SUMS").read_text().splitlines()]
    assert names == [
        "config.json", "generation_config.json", "model.safetensors", "modeling_new.py", "strange", "tokenizer.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "s.json").read_text())["predicate"]["uncovered"] == ["pytorch_model.bin"]
    assert "not covered, though a loader might take it: pytorch_model.bin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("modeling_new.py", "import os"),
        ("generation_config.json", "{}"),
        ("more.py", "x"),
        ("pytorch_model.bin", "y"),
    ],
)
def test_nothing_is_attested_beside_another_file(audited, tmp_path, capsys, file, content):
    tuned = shutil.copytree(audited / "tuned", tmp_path / "tuned")
    (tuned / file).write_text(content)
    command = ["attest", str(audited / "receipt.json"), "-o", str(tmp_path / "s.json"), "--checkpoint"]
    assert run([*command, str(tuned)]) == 5
    assert file in capsys.readouterr().err
    assert not (tmp_path / "SHA256SUMS").exists()


def test_a_file_that_a_server_takes_and_that_changes_during_the_audit_ends_it(
    audited, tmp_path, monkeypatch, capsys
):
    tuned = shutil.copytree(audited / "tuned", tmp_path / "tuned")
    from moe_atlas.auditing import run as auditing

    def finish(*arguments):
        (tuned / "modeling_new.py").write_text("import os")
        return finished(*arguments)

    finished = auditing.finish
    monkeypatch.setattr(auditing, "finish", finish)
    command = ["audit", str(audited / "base"), str(tuned), "--probe", str(audited / "probe/probes.yaml")]
    assert run([*command, "--receipt", str(tmp_path / "r.json")]) == 5
    assert "modeling_new.py" in capsys.readouterr().err


def row(name, kind="settings", **changes):
    return {
        "file": name,
        "kind": kind,
        "bytes": 3,
        "sha256": "ab" * 32,
        "content": None,
        "unread": None,
    } | changes


def derived(base, tuned, more=0):
    facts, windows = synthetic.audit()
    for side, rows in (("base", base), ("tuned", tuned)):
        facts["checkpoints"][side]["files"]["listed"] = rows
    facts["checkpoints"]["tuned"]["files"]["more"] = {"files": more, "sha256": "cd" * 32 if more else None}
    return derive(facts, windows)


@pytest.mark.parametrize(
    ("base", "tuned", "change"),
    [
        (row("x.json"), row("x.json", sha256="cd" * 32), "changed"),
        (row("x.json", content="ef" * 32), row("x.json", sha256="cd" * 32, content="ef" * 32), None),
        (row("x.json"), row("x.json"), None),
        (row("x.py", "code", sha256=None), row("x.py", "code", sha256=None), "not compared"),
        (row("x.py", "code", sha256=None), row("x.py", "code", sha256=None, bytes=4), "changed"),
        (
            row("x.py", "code"),
            row("x.py", "code", bytes=None, sha256=None, unread="is a link"),
            "not compared",
        ),
    ],
)
def test_files_are_equal_only_where_their_bytes_or_contents_are(base, tuned, change):
    found = derived([base], [tuned])["differences"]["files"]
    assert [one["change"] for one in found] == ([] if change is None else [change])


def test_a_file_that_was_not_read_is_said():
    receipt = derived([], [row("x.py", "code", bytes=None, sha256=None, unread="is a link")])
    assert (
        messages(receipt)["unread-files"]
        == "beside the tuned checkpoint stand files that were not read: x.py"
    )


def test_differences_among_files_that_are_not_listed_are_said():
    assert "further files" in messages(derived([], [], more=3))["other-files"]


def test_many_differences_stay_few_warnings_that_no_report_cuts():
    receipt = derived([], [row(f"{'n' * 90}{number:03}.json") for number in range(256)])
    said = [w["message"] for w in receipt["warnings"] if w["code"] == "server-files"]
    assert len(said) == 5
    assert all(len(message) <= 300 for message in said)
    assert said[-1].startswith("files that a server acts on differ: ")
    assert "more, listed in the receipt" in said[-1]
    assert len(encode_receipt(receipt | {"evidence": {"receipt_sha256": ""}})) < 1 << 20


def test_warnings_follow_from_the_facts(audited):
    """A receipt from which a difference was taken away does not verify."""
    receipt = json.loads((audited / "receipt.json").read_text())
    shutil.copy(audited / "receipt.windows.safetensors", audited / "edited.windows.safetensors")
    receipt["differences"]["config"].pop(0)
    (audited / "edited.json").write_bytes(encode_receipt(receipt))
    paths = [one.path for one in verify(audited / "edited.json").mismatches]
    assert "differences.config" in paths
