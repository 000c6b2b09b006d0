"""Provisional budgets from a base alone: the ruler by a plain rewrite, the file end to end, its words everywhere."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_atlas.calibration.bounds import rounded_down
from moe_atlas.calibration.from_base import Base, draft
from moe_atlas.cli import run
from moe_atlas.errors import InputRefused
from moe_atlas.probes.load import load_probes
from moe_atlas.views.registered import ProbeView
from moe_atlas.views.yardstick import Yardstick
from scripts.oracle import tiny
from tests.support import pairs

KEYS = {"coordinate": "coordinate_drift_z", "boundary": "boundary_drift", "content": "content_drift",
        "expert_content": "expert_content"}  # fmt: skip
UNGATED = ("transition", "overlap_drop", "entropy_drop", "load_cv_rise")
CHANNELS = (
    *KEYS.values(),
    "transition_drift",
    "overlap_drop",
    "dead_share_rise",
    "entropy_drop",
    "load_cv_rise",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def row(layer: int, high: float | None, **others: Any) -> dict[str, Any]:
    """A layer of a yardstick whose every channel has this upper bound."""
    found = {"estimate": high, "low": 0.0, "high": high}
    return {"layer": layer, **dict.fromkeys(CHANNELS, found), **others}


def measured(*layers: dict[str, Any], documents: int = 100, protected: tuple[int, ...] = (1, 2)) -> Base:
    domain = {"name": "prose", "role": "base", "documents": documents, "nll_increase": {}, "kl": {}}
    block = {"copy": {"bits": 4, "group": 32}, "layers": list(layers), "domains": [domain]}
    probe = {"name": "tiny", "protected_layers": list(protected)}
    return Base(Yardstick(block), ProbeView(probe), "qwen3_moe", "0" * 64, {0: (4, 2), 1: (16, 2), 2: (8, 2)})


def test_a_budget_is_the_factor_times_the_worst_protected_layer():
    base = measured(row(0, 0.19), row(1, 0.0101), row(2, 0.02))
    found = draft(base, 0.05)
    assert {key: found.budgets[key].value for key in KEYS} == dict.fromkeys(KEYS, 0.05)
    assert {key: found.budgets[key].value for key in UNGATED} == dict.fromkeys(UNGATED)
    assert found.budgets["dead_share_rise"].value == 0.19  # 1.5 of 8 experts, rounded up
    assert draft(base, 0.05, 4.0).budgets["content"].value == 0.08
    assert "layer 2" in found.budgets["content"].why
    assert "0.02" in found.budgets["transition"].why


def test_a_channel_that_says_nothing_keeps_its_default():
    still = {"estimate": 0.0, "low": 0.0, "high": 0.0}
    unbounded = {"estimate": 0.1, "low": 0.0, "high": None}
    undefined = {"estimate": None, "low": None, "high": None, "not_applicable": True, "reason": "no experts"}
    wide = {"estimate": 0.3, "low": 0.0, "high": 0.3}
    for odd in (still, unbounded, wide):
        found = draft(measured(row(1, 0.02, content_drift=odd, expert_content=odd), row(2, 0.01)), 0.05)
        lost = odd is not still
        assert found.budgets["content"].value == (None if lost else 0.025)
        assert found.budgets["expert_content"].value == (0.35 if lost else 0.025)
    found = draft(measured(row(1, 0.02), row(2, 0.01, content_drift=undefined)), 0.05)
    assert found.budgets["content"].value == 0.05


def test_the_tail_guard_follows_the_margin():
    found = draft(measured(row(1, 0.02), row(2, 0.02)), 0.05)
    assert found.document_share == 0.055  # Clopper-Pearson, 1 of 100 documents: 5.45 %
    assert found.document_nll == 0.9
    assert found.document_nll * found.document_share <= 0.05
    assert [rounded_down(value) for value in (0.357, 7.0, 0.0999, 123.0)] == [0.35, 7.0, 0.099, 120.0]


def test_nothing_to_protect_is_refused():
    with pytest.raises(InputRefused) as caught:
        draft(measured(row(1, 0.02), protected=()), 0.05)
    assert caught.value.code == "E_CALIBRATION"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("from-base")
    base = tiny.save("qwen3_moe", root / "base.ckpt", seed=5)
    tiny.save("qwen3_moe", root / "other.ckpt", seed=6)
    pairs.variant(base, root / "light.ckpt", pairs.jitter(3e-3, lambda name: "norm" not in name))
    pairs.variant(base, root / "hard.ckpt", pairs.jitter(0.5, lambda name: "norm" not in name))
    probes = pairs.probe(root)
    (root / "free.yaml").write_text(probes.read_text().split("policy:\n")[0])
    return root


def in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_the_file_end_to_end(place, monkeypatch, capsys):
    in_place(place, monkeypatch)
    made = ["calibrate", "--from-base", "base.ckpt", "--probe", "probes.yaml", "--margin", "0.2", "--force"]
    assert run([*made, "--out", "policy.yaml"]) == 0
    said = capsys.readouterr().out
    assert "your margin: 0.2" in said
    assert "prose: " in said
    audit = [
        "audit",
        "base.ckpt",
        "light.ckpt",
        "--probe",
        "probes.yaml",
        "--yardstick",
        "--quiet",
        "--force",
    ]
    run([*audit, "--receipt", "plain.json"])
    block = json.loads(Path("plain.json").read_text())["yardstick"]
    assert block["taken_from"] == "cache"
    policy = yaml.safe_load(Path("policy.yaml").read_text())["policy"]
    for key, channel in KEYS.items():
        wanted = 2.5 * max(row[channel]["high"] for row in block["layers"])
        assert policy["rewrite"][key] == pytest.approx(wanted, rel=0.1)
        assert policy["rewrite"][key] >= wanted
        assert math.isclose(float(f"{policy['rewrite'][key]:.2g}"), policy["rewrite"][key])
    origin = policy["set_for"]["from_base"]
    receipt = json.loads(Path("plain.json").read_text())
    assert origin["base"] == receipt["checkpoints"]["base"]["digest"]
    assert origin["probe"] == receipt["probe"]["lock"]["sha256"]
    assert (origin["bits"], origin["group"], origin["factor"]) == (4, 32, 2.5)
    assert run(["register", "free.yaml", "--policy-from", "policy.yaml", "--force"]) == 0
    assert "document_nll" not in capsys.readouterr().out


def test_the_next_step_that_is_printed_works(place, tmp_path, monkeypatch, capsys):
    shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    made = ["calibrate", "--from-base", "base.ckpt", "--probe", "probes.yaml", "--margin", "0.2"]
    assert run([*made, "--out", "first.yaml"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    step = said.partition("then: atlas ")[2].split()
    shutil.copy("free.yaml", "probes.yaml")  # the policy is out
    assert run([one for one in step if one != "--force"]) == 2
    assert "atlas register --force probes.yaml --policy-from FILE" in capsys.readouterr().err
    assert run(step) == 0
    assert f"atlas {' '.join(step)}" in Path("first.yaml").read_text()


def audited(place: Path, monkeypatch, base: str, tuned: str) -> dict[str, Any]:
    in_place(place, monkeypatch)
    made = ["calibrate", "--from-base", "base.ckpt", "--probe", "probes.yaml", "--margin", "0.2", "--force"]
    assert run([*made, "--out", "policy.yaml"]) == 0
    assert run(["register", "free.yaml", "--policy-from", "policy.yaml", "--force"]) == 0
    given = ["--probe", "free.yaml", "--policy-from", "policy.yaml", "--quiet", "--force"]
    run(["audit", base, tuned, *given, "--format", "markdown=out.md", "--format", "junit=out.xml",
         "--format", "html=out.html", "--run", "sft"])  # fmt: skip
    return json.loads(Path("receipt.json").read_text())


def claim(receipt: dict[str, Any], name: str = "preserved") -> dict[str, Any]:
    return next(found for found in receipt["claims"] if found["claim"] == name)


def test_a_pass_says_so_wherever_it_is_shown(place, monkeypatch, capsys):
    receipt = audited(place, monkeypatch, "base.ckpt", "light.ckpt")
    assert receipt["verdict"] == "pass"
    assert receipt["qualified"] == ["provisional-budgets"]
    licensed = claim(receipt)
    assert licensed["status"] == "licensed"
    assert "moved no further than 2.5 × what a 4-bit copy of its base does" in licensed["statement"]
    assert "healthy tune" in licensed["does_not_say"]
    assert "atlas was preserved" not in json.dumps(receipt["claims"])
    assert "PASS under provisional budgets" in Path("out.md").read_text()
    assert "PASS under provisional budgets" in Path("out.html").read_text()
    assert "under provisional budgets" in Path("out.xml").read_text()
    capsys.readouterr()
    assert run(["verify", "receipt.json"]) == 0
    assert "pass under provisional budgets" in capsys.readouterr().out
    run(["history", "sft"])
    assert "provisional" in capsys.readouterr().out
    assert run(["report", "receipt.json"]) == 0
    assert "PASS under provisional budgets" in capsys.readouterr().out
    assert (
        run(["attest", "receipt.json", "--checkpoint", "light.ckpt", "--output", "st.json", "--force"]) == 0
    )
    assert "pass under provisional budgets" in capsys.readouterr().out
    assert json.loads(Path("st.json").read_text())["predicate"]["qualified"] == ["provisional-budgets"]


def test_a_fail_is_contradicted_in_the_same_words(place, monkeypatch):
    receipt = audited(place, monkeypatch, "base.ckpt", "hard.ckpt")
    assert receipt["verdict"] == "fail"
    assert claim(receipt)["status"] == "contradicted"
    assert not [w for w in receipt["warnings"] if w["code"] == "budgets-set-for"]


def test_a_policy_of_another_base_is_warned_about(place, monkeypatch):
    receipt = audited(place, monkeypatch, "other.ckpt", "other.ckpt")
    said = [w["message"] for w in receipt["warnings"] if w["code"] == "budgets-set-for"]
    assert len(said) == 1
    assert receipt["checkpoints"]["base"]["digest"] in said[0]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--probe", "probes.yaml"], "E_OPTIONS"),
        (["--margin", "0.1"], "E_OPTIONS"),
        (["--probe", "probes.yaml", "--margin", "0"], "E_MARGIN"),
        (["--probe", "probes.yaml", "--margin", "0.7"], "E_MARGIN"),
        (["--probe", "probes.yaml", "--margin", "nan"], "E_MARGIN"),
        (["--probe", "probes.yaml", "--margin", "0.1", "--healthy", "a.json"], "E_OPTIONS"),
    ],
)
def test_what_does_not_go_together_is_one_line(place, monkeypatch, capsys, options, code):
    in_place(place, monkeypatch)
    assert run(["calibrate", "--from-base", "base.ckpt", "--out", "new.yaml", *options]) == 2
    assert code in capsys.readouterr().err
    assert not Path("new.yaml").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("base", "12ab", "sha256"),
        ("probe", 12, "text"),
        ("bits", 1, "from 2"),
        ("group", 0, "from 1"),
        ("factor", 0, "above 0"),
        ("extra", 1, "unknown key"),
    ],
)
def test_a_strange_origin_is_refused_with_its_key(place, tmp_path, key, value, said):
    origin = {"base": "0" * 64, "probe": "1" * 64, "bits": 4, "group": 32, "factor": 2.5}
    config = yaml.safe_load((place / "probes.yaml").read_text())
    for row in config["domains"]:
        row["source"] = str(place / row["source"])
    config["policy"]["set_for"] = {"from_base": origin}
    (tmp_path / "probes.yaml").write_text(yaml.safe_dump(config))
    assert load_probes(tmp_path / "probes.yaml").policy.set_for.from_base.describe() == origin
    config["policy"]["set_for"] = {"from_base": origin | {key: value}}
    (tmp_path / "probes.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputRefused) as caught:
        load_probes(tmp_path / "probes.yaml")
    assert said in str(caught.value)
    assert key in str(caught.value)


def test_a_margin_without_a_base_is_refused(place, monkeypatch, capsys):
    in_place(place, monkeypatch)
    assert run(["calibrate", "--out", "new.yaml", "--margin", "0.1"]) == 2
    assert run(["calibrate", "--out", "new.yaml"]) == 2
    assert "--from-base" in capsys.readouterr().err
