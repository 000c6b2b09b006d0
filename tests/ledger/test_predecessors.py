"""A removed lock does not make a registration the first one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moe_atlas.cli import app
from moe_atlas.errors import IntegrityError
from moe_atlas.ledger import Ledger
from moe_atlas.probes.lock import lock_path, read_lock
from moe_atlas.probes.registration import register
from tests.ledger.test_history import PROBES

WIDER = PROBES.replace("coordinate: 0.1", "coordinate: 0.9")


@pytest.fixture
def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text")
    path = tmp_path / "probes.yaml"
    path.write_text(PROBES)
    return path


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["register", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def facts(*arguments: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(said(*arguments, "--json"))
    return found


def widened(probes: Path) -> None:
    """Remove the lock and write another policy."""
    lock_path(probes).unlink()
    probes.write_text(WIDER)


@pytest.mark.parametrize("again", [("--run", "sft"), ("--run", "other"), ()])
def test_a_ledger_names_the_registration_whose_lock_is_gone(probes: Path, again: tuple[str, ...]) -> None:
    first = facts(str(probes), "--run", "sft")
    widened(probes)
    second = facts(str(probes), *again)
    assert second["predecessor"] == {
        "sha256": first["lock_sha256"],
        "registered_at": first["registered_at"],
        "policy_sha256": first["policy_sha256"],
    }
    assert second["predecessor_named_by"] == "the ledger of run sft"
    assert read_lock(lock_path(probes)).predecessor == second["predecessor"]


def test_it_is_said_on_the_screen_with_its_other_policy(probes: Path) -> None:
    first = facts(str(probes), "--run", "sft")
    widened(probes)
    output = said(str(probes))
    assert f"replaces    {first['lock_sha256']}" in output
    assert "named by the ledger of run sft" in output
    assert f"its policy was another, sha256 {first['policy_sha256']}" in output


def test_the_runs_beside_the_probe_file_and_those_of_runs_are_looked_through(
    probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = facts(str(probes), "--run", "sft")
    widened(probes)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert facts(str(probes))["predecessor_named_by"] == "the ledger of run sft"
    widened(probes)
    (tmp_path / ".atlas").rename(tmp_path / "moved")
    assert facts(str(probes))["predecessor"] is None
    widened(probes)
    found = facts(str(probes), "--runs", str(tmp_path / "moved/runs"))["predecessor"]
    assert isinstance(found, dict)
    assert found["sha256"] == first["lock_sha256"]


def receipt(path: Path, name: str, sha256: str, time: str) -> None:
    lock = {"sha256": sha256 * 32, "registered_at": time, "policy_sha256": "cd" * 32}
    path.write_text(json.dumps({"probe": {"name": name, "lock": lock}}))


def test_receipts_beside_the_probe_file_name_the_latest(probes: Path, tmp_path: Path) -> None:
    receipt(tmp_path / "a.json", "gate", "aa", "2026-01-02T00:00:00+00:00")
    receipt(tmp_path / "b.json", "gate", "bb", "2026-01-01T00:00:00+00:00")
    receipt(tmp_path / "c.json", "another probe", "cc", "2026-01-03T00:00:00+00:00")
    (tmp_path / "d.json").write_bytes(b"\xff")
    (tmp_path / "e.json").write_text('{"probe": {"name": "gate", "lock": {"sha256": 1}}}')
    (tmp_path / "f.json").write_text('{"probe": {"name": "gate", "lock": []}}')
    (tmp_path / "g.json").write_text("[1]")
    (tmp_path / "h.json").mkdir()
    found = facts(str(probes))
    assert found["predecessor"] == {
        "sha256": "aa" * 32,
        "registered_at": "2026-01-02T00:00:00+00:00",
        "policy_sha256": "cd" * 32,
    }
    assert found["predecessor_named_by"] == "receipt a.json"


def test_an_audit_in_a_ledger_names_its_registration(probes: Path) -> None:
    body = {"probe": "gate", "lock_sha256": "aa" * 32, "lock_policy_sha256": "bb" * 32}
    Ledger("sft").append("audit", body | {"registered_at": "2026-01-01T00:00:00+00:00"})
    found = facts(str(probes))["predecessor"]
    assert isinstance(found, dict)
    assert found["sha256"] == "aa" * 32


def test_a_first_registration_says_that_none_is_known(probes: Path) -> None:
    output = said(str(probes))
    assert "no earlier registration of gate is known" in output
    assert "no earlier registration" not in said(str(probes))  # it is registered: nothing was looked for
    probes.write_text(WIDER)
    output = said(str(probes), "--force")
    assert "replaces" in output
    assert "no earlier registration" not in output


def test_a_ledger_that_does_not_verify_is_named(probes: Path) -> None:
    facts(str(probes), "--run", "sft")
    path = Ledger("sft").path
    path.write_bytes(path.read_bytes().replace(b"gate", b"gote", 1))
    widened(probes)
    with pytest.raises(IntegrityError, match="E_LEDGER"):
        said(str(probes), "--run", "sft")
    assert not lock_path(probes).exists()
    output = said(str(probes))
    assert "no earlier registration of gate is known" in output
    assert "sft/ledger.jsonl does not verify, so it names no earlier registration" in output


def test_one_content_has_one_digest_whenever_it_was_registered(probes: Path) -> None:
    first = register(probes)
    lock_path(probes).unlink()
    again = register(
        probes, earlier=lambda name: {"sha256": "a", "registered_at": name, "policy_sha256": "b"}
    )
    assert again.predecessor == {"sha256": "a", "registered_at": "gate", "policy_sha256": "b"}
    assert (again.digest != first.digest, again.content_sha256 == first.content_sha256) == (True, True)
    probes.write_text(WIDER)
    assert register(probes, force=True).content_sha256 != first.content_sha256
