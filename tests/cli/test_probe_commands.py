from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from moe_atlas.cli.init import init
from moe_atlas.cli.register import register
from moe_atlas.errors import UsageError
from moe_atlas.probes import load_probes

PROBES = """\
schema: atlas/probes/v1
name: gate
tokenizer: bytes
windows: {tokens: 4}
protected_layers: all
domains: [{name: prose, role: base, source: prose}]
policy:
  task: none
  rewrite: {coordinate: 0.1, boundary: null, transition: null, content: null}
  damage: {nll: 0.1, document_nll: 0.5, document_share: 0.05}
"""


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command("init")(init)
    app.command("register")(register)
    return app


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "prose").mkdir()
    (tmp_path / "prose" / "a.txt").write_text("some text")
    (tmp_path / "prose" / "b.txt").write_text("other words")
    (tmp_path / "probes.yaml").write_text(PROBES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_writes_a_valid_file_once(app: typer.Typer, tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    result = CliRunner().invoke(app, ["init", str(path)])
    assert result.exit_code == 0
    assert f"atlas register {path}" in result.output
    load_probes(path)
    path.write_text("mine")
    result = CliRunner().invoke(app, ["init", str(path)])
    assert isinstance(result.exception, UsageError)
    assert path.read_text() == "mine"
    assert CliRunner().invoke(app, ["init", str(path), "--force"]).exit_code == 0
    load_probes(path)


def test_init_writes_probes_yaml_by_default(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init"]).exit_code == 0
    assert (tmp_path / "probes.yaml").exists()


def test_register_says_what_it_bound(app: typer.Typer, folder: Path) -> None:
    result = CliRunner().invoke(app, ["register", "probes.yaml"])
    assert result.exit_code == 0
    assert "prose (base): 2 windows of 2 documents" in result.output
    facts = json.loads(CliRunner().invoke(app, ["register", "probes.yaml", "--json"]).output)
    assert facts["lock_sha256"] in result.output
    domain = {"name": "prose", "role": "base", "windows": 2, "documents": 2}
    assert facts["domains"] == [domain | {"near_copies": [], "elsewhere": []}]
    (folder / "probes.yaml").write_text(PROBES.replace("coordinate: 0.1", "coordinate: 0.2"))
    assert isinstance(CliRunner().invoke(app, ["register", "probes.yaml"]).exception, UsageError)
    result = CliRunner().invoke(app, ["register", "probes.yaml", "--force"])
    assert result.exit_code == 0
    assert f"replaces    {facts['lock_sha256']}" in result.output


def test_register_says_when_nothing_can_pass(app: typer.Typer, folder: Path) -> None:
    text = PROBES.replace("coordinate: 0.1", "coordinate: null")
    (folder / "probes.yaml").write_text(text)
    result = CliRunner().invoke(app, ["register", "probes.yaml"])
    assert "no rewrite budget is set" in result.output
    (folder / "probes.yaml").write_text(text.replace("nll: 0.1,", "nll: null,"))
    result = CliRunner().invoke(app, ["register", "probes.yaml", "--force"])
    assert "no damage margin is set" in result.output


def test_register_says_what_could_not_fail(app: typer.Typer, folder: Path) -> None:
    plain = CliRunner().invoke(app, ["register", "probes.yaml"])
    assert "warning" not in plain.output
    text = PROBES.replace("coordinate: 0.1", "coordinate: 2").replace(
        "0.5, document_share", "3, document_share"
    )
    (folder / "probes.yaml").write_text(text)
    result = CliRunner().invoke(app, ["register", "probes.yaml", "--force"])
    assert result.exit_code == 0
    lines = [line for line in result.output.splitlines() if line.startswith("  warning: ")]
    assert ["coordinate 2 " in lines[0], "document_nll 3 " in lines[1], "tail guard" in lines[2]] == [
        True
    ] * 3
    facts = json.loads(CliRunner().invoke(app, ["register", "probes.yaml", "--json"]).output)
    assert [f"  warning: {warning}" for warning in facts["warnings"]] == lines


def test_register_has_nothing_to_say_of_what_init_writes(app: typer.Typer, folder: Path) -> None:
    assert CliRunner().invoke(app, ["init", "new.yaml"]).exit_code == 0
    for name in ("prose.jsonl", "code.jsonl"):
        rows = [random.Random(f"{name}{n}").choices("abcdefghijklmnopqrstuvwxyz", k=40) for n in range(120)]
        (folder / name).write_text("".join(json.dumps({"text": "".join(row)}) + "\n" for row in rows))
    new = (folder / "new.yaml").read_text().replace("tokens: 512", "tokens: 8")
    (folder / "new.yaml").write_text(new.replace("tokenizer: tokenizer.json", "tokenizer: bytes"))
    result = CliRunner().invoke(app, ["register", "new.yaml"])
    assert result.exit_code == 0, result.exception
    assert "warning" not in result.output
