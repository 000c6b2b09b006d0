"""A failed run becomes GREEN again through new checkpoints that pass, not through passes of nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_atlas.cli import run
from scripts.oracle import tiny
from tests.support import pairs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recovery")
    base = tiny.save("qwen3_moe", root / "base", seed=5)
    pairs.variant(base, root / "resharded", lambda tensors: None, shards=3)
    pairs.variant(base, root / "hard", pairs.jitter(0.5, lambda name: "norm" not in name))
    for name, scale in (("light", 3e-3), ("later", 2e-3)):
        pairs.variant(base, root / name, pairs.jitter(scale, lambda tensor: "self_attn" in tensor))
    pairs.variant(root / "light", root / "light-resharded", lambda tensors: None, shards=2)
    pairs.probe(root / "probe", policy=pairs.POLICY | {"allow": ["identical"]})
    return root


def test_only_new_checkpoints_that_pass_end_an_episode(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ["--runs", str(tmp_path / "runs")]

    def gated(tuned: str, step: int) -> tuple[int, str]:
        """Audit one checkpoint against the base, in the run; the audit's code and the run's state."""
        command = [
            "audit",
            str(place / "base"),
            str(place / tuned),
            "--probe",
            str(place / "probe/probes.yaml"),
        ]
        command += [
            "--receipt",
            str(tmp_path / f"{step}.json"),
            "--run",
            "sft",
            "--step",
            str(step),
            "--quiet",
        ]
        code = run([*command, *runs])
        capsys.readouterr()
        answer = run(["gate", "sft", "--json", *runs])
        facts = json.loads(capsys.readouterr().out)
        assert (answer == 0) == (facts["state"] == "clear")
        return code, f"{facts['state']}: {facts['not_counted']}"

    nothing = "base and tuned hold the same weights: nothing was compared"
    again = "this checkpoint was audited on the same terms before: it counts once"
    assert gated("hard", 1) == (1, "first-bad: None")
    assert gated("base", 2) == (0, f"alert: {nothing}")
    assert gated("base", 3) == (0, f"alert: {nothing}")
    assert gated("resharded", 4) == (0, f"alert: {nothing}")
    assert gated("light", 5) == (0, "recovering: None")
    assert gated("light", 6) == (0, f"alert: {again}")
    assert gated("light-resharded", 7) == (0, f"alert: {again}")
    assert gated("later", 8) == (0, "clear: None")
