"""The pipeline examples: their own shell steps, run on a pair that passes, one that fails and one tampered with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from moe_atlas.cli import run
from scripts.oracle import tiny
from tests.support import pairs

ROOT = Path(__file__).parents[2]
GITHUB = yaml.safe_load((ROOT / "configs/ci/github-actions.yml").read_text())
GITLAB = yaml.safe_load((ROOT / "configs/ci/gitlab-ci.yml").read_text())
SCHEMA = json.loads((ROOT / "docs/statement.schema.json").read_text())


def github() -> tuple[list[str], dict[str, str]]:
    """The shell steps, each a process of its own under ``bash -e``, and the job's variables."""
    job = GITHUB["jobs"]["gate"]
    return [step["run"] for step in job["steps"] if "run" in step], job["env"]


def gitlab() -> tuple[list[str], dict[str, str]]:
    """The whole script is one process that stops at the first line that fails."""
    job = GITLAB["atlas"]
    return ["\n".join([*job["before_script"], *job["script"]])], job["variables"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("ci")
    base = tiny.save("qwen3_moe", root / "base", seed=5)
    pairs.variant(base, root / "light", pairs.jitter(3e-3, lambda name: "self_attn" in name), shards=2)
    pairs.variant(base, root / "hard", pairs.jitter(0.5, lambda name: "norm" not in name))
    probes = pairs.probe(root / "gate")
    config = yaml.safe_load(probes.read_text())
    policy = {"schema": "atlas/policy/v1", "name": "release", "policy": config.pop("policy")}
    (root / "gate/policy.yaml").write_text(yaml.safe_dump(policy))
    probes.write_text(yaml.safe_dump(config))
    assert run(["register", str(probes), "--force", "--policy-from", str(root / "gate/policy.yaml")]) == 0
    (root / "bin").mkdir()
    stub(root / "bin/pip", "exit 0")
    stub(root / "bin/atlas", f'exec "{sys.executable}" -m moe_atlas "$@"')
    return root


def stub(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.fixture(params=[github, gitlab], ids=["github", "gitlab"])
def pipeline(request, project, tmp_path):
    steps, variables = request.param()
    for name in ("base", "light", "hard", "gate"):
        shutil.copytree(project / name, tmp_path / name)
    environment = os.environ | {key: value for key, value in variables.items() if "$" not in value}
    environment |= {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "BASE": "base"}
    environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))

    def call(tuned: str, before_step=lambda number: None) -> tuple[int, int]:
        for number, step in enumerate(steps):
            before_step(number)
            command = ["bash", "-e", "-o", "pipefail", "-c", step]
            done = subprocess.run(
                command,
                cwd=tmp_path,
                env=environment | {"TUNED": tuned},
                capture_output=True,
                text=True,
                check=False,
            )
            assert "Traceback" not in done.stderr
            if done.returncode:
                return done.returncode, number
        return 0, len(steps)

    return call


def test_a_pair_that_passes_ends_in_0_with_a_valid_statement(pipeline, tmp_path):
    assert pipeline("light")[0] == 0
    statement = json.loads((tmp_path / "statement.json").read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(statement)
    assert statement["predicate"]["result"] == "PASSED"
    assert statement["predicate"]["configuration"][1]["name"] == "release"


def test_a_pair_that_fails_stops_the_pipeline_and_is_not_attested(pipeline, tmp_path):
    assert pipeline("hard")[0] == 1
    assert (tmp_path / "receipt.json").exists()
    assert not (tmp_path / "statement.json").exists()


def test_a_widened_budget_stops_the_pipeline(pipeline, tmp_path):
    policy = tmp_path / "gate/policy.yaml"
    policy.write_text(policy.read_text().replace("boundary: 0.08", "boundary: 0.8"))
    assert pipeline("light")[0] == 4
    assert not (tmp_path / "receipt.json").exists()


# GitLab's script is one process: nothing can be swapped between two of its lines from here.
@pytest.mark.parametrize("pipeline", [github], indirect=True, ids=["github"])
def test_swapped_shards_stop_the_pipeline_at_the_stock_tool(pipeline, tmp_path):
    def swap(number: int) -> None:
        if number == 3:
            one, two = sorted((tmp_path / "light").glob("*.safetensors"))
            raw = one.read_bytes()
            one.write_bytes(two.read_bytes())
            two.write_bytes(raw)

    assert pipeline("light", swap) == (1, 3)


def test_nothing_in_the_examples_opens_the_gate():
    for text in (
        (ROOT / f"configs/ci/{name}").read_text() for name in ("github-actions.yml", "gitlab-ci.yml")
    ):
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        assert not [
            line for line in lines if "continue-on-error" in line or "allow_failure" in line or "||" in line
        ]
    for step in github()[0]:
        assert "${{" not in step  # a name must reach the shell as a variable, never as its text
