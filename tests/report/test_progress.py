"""What a long run says of its progress, and to whom."""

from __future__ import annotations

import json

import pytest
from rich.progress import Progress

from moe_atlas import cli
from moe_atlas.report.console import progress
from scripts.oracle import tiny
from tests.support import pairs


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_says_now_and_then_how_far_it_is_and_how_long_the_rest_takes(clock, capsys):
    log = progress.Log()
    clock[0] = 100.0  # opening the checkpoints is no part of the phase
    log.phase("replaying layers", 10)
    for _ in range(4):
        clock[0] += 20.0
        log.step("layer 3", 3 << 20)
    assert capsys.readouterr().err.splitlines() == [
        "atlas: replaying layers: 10 steps",
        "atlas: replaying layers: 1/10 (layer 3, 3.0 MiB read), about 3 min left",
        "atlas: replaying layers: 3/10 (layer 3, 3.0 MiB read), about 2 min left",
    ]


def test_json_is_alone_on_standard_output_and_quiet_silences_the_progress_beside_it(tmp_path, capsys):
    base = tiny.save("qwen3_moe", tmp_path / "base", seed=5)
    probes = pairs.probe(tmp_path / "probe")
    command = ["audit", str(base), str(base), "--probe", str(probes), "--receipt", str(tmp_path / "r.json")]
    cli.run([*command, "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["verdict"]
    assert said.err.startswith("atlas: replaying layers: 2 steps\n")
    cli.run([*command, "--json", "--force", "--quiet"])
    said = capsys.readouterr()
    assert json.loads(said.out)["verdict"]
    assert said.err == ""


def test_a_terminal_shows_the_last_few_phases_of_a_run_of_dozens():
    with Progress(disable=True) as shown:
        bar = progress.Bar(shown)
        for number in range(30):
            bar.phase(f"rung {number}", 1)
        bar.step("layer 0", 1)
        assert [task.description for task in shown.tasks] == [f"rung {number}" for number in range(26, 30)]
        assert [task.completed for task in shown.tasks] == [0, 0, 0, 1]
