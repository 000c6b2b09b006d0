from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from moe_atlas.cli import run
from moe_atlas.cli.probes.init import init
from moe_atlas.cli.probes.register import register
from moe_atlas.errors import InputRefused, UsageError
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
    assert facts["domains"] == [domain | {"near_copies": [], "elsewhere": [], "left_out": None}]
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
    assert plain.output.count("warning") == 1
    few = "  warning: domain prose has 2 documents; nothing can pass on fewer than 36, register 100 or more"
    assert few in plain.output.splitlines()
    text = PROBES.replace("coordinate: 0.1", "coordinate: 2").replace(
        "0.5, document_share", "3, document_share"
    )
    (folder / "probes.yaml").write_text(text)
    result = CliRunner().invoke(app, ["register", "probes.yaml", "--force"])
    assert result.exit_code == 0
    lines = [line for line in result.output.splitlines() if line.startswith("  warning: ")]
    said = ["has 2 documents", "coordinate 2 ", "document_nll 3 ", "tail guard"]
    assert all(words in line for words, line in zip(said, lines, strict=True))
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


def test_register_says_at_once_that_a_base_domain_is_too_small(app: typer.Typer, folder: Path) -> None:
    """From 36 documents on a base domain can pass; a task domain has no such floor."""
    (folder / "probes.yaml").write_text(PROBES.replace("tokens: 4", "tokens: 16"))
    names = ("a", "b", *range(2, 36))
    for count in (35, 36):
        for n, name in enumerate(names[:count]):
            text = "".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz", k=60))
            (folder / "prose" / f"{name}.txt").write_text(text)
        facts = json.loads(CliRunner().invoke(app, ["register", "probes.yaml", "--json", "--force"]).output)
        assert [w for w in facts["warnings"] if "nothing can pass" in w] == (
            ["domain prose has 35 documents; nothing can pass on fewer than 36, register 100 or more"]
            if count == 35
            else []
        )


def test_register_says_how_many_documents_were_left_out(app: typer.Typer, folder: Path) -> None:
    (folder / "prose" / "c.txt").write_text("abc")
    result = CliRunner().invoke(app, ["register", "probes.yaml"])
    assert isinstance(result.exception, InputRefused)
    assert result.exception.code == "E_PROBE_SHORT"
    assert "shorter: skip" in result.exception.next_step
    (folder / "probes.yaml").write_text(PROBES.replace("source: prose", "source: prose, shorter: skip"))
    result = CliRunner().invoke(app, ["register", "probes.yaml"])
    assert (
        "domain 'prose': 1 of 3 documents drawn are shorter than their windows and were left out"
        in result.output
    )
    lock = json.loads((folder / "probes.lock.json").read_text())
    assert lock["domains"][0]["left_out"] == 1
    facts = json.loads(CliRunner().invoke(app, ["register", "probes.yaml", "--json"]).output)
    assert (facts["domains"][0]["documents"], facts["domains"][0]["left_out"]) == (2, 1)
    asked = PROBES.replace("source: prose", "source: prose, shorter: skip, documents: 3")
    (folder / "probes.yaml").write_text(asked)
    result = CliRunner().invoke(app, ["register", "probes.yaml", "--force"])
    assert isinstance(result.exception, InputRefused)
    assert result.exception.code == "E_PROBE_COUNT"
    assert "holds 2 that are not shorter than 4 tokens" in result.exception.problem


def test_the_command_line_says_every_error_of_a_probe_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "probes.yaml").write_text(
        PROBES.replace("tokens: 4", "tokens: 0").replace("nll: 0.1", "nll: x")
    )
    assert run(["register", "probes.yaml"]) == 4
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == ["probes.yaml:4:", "probes.yaml:10:"]
