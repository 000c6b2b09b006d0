"""Two receipts side by side: paired where the windows pair, cautious where they do not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binom

from moe_atlas.cli import run
from moe_atlas.derivation.derive import derive
from moe_atlas.receipt.compare import HIGHER, LOWER, SAME, UNCLEAR, VerifiedReceipt, compare
from tests.receipt import synthetic


def side(kind="audit", seed=0, scale=1.0, lock=None, **changes):
    facts = synthetic.facts(kind)
    facts["probe"]["policy"]["resamples"] = 200
    if lock:
        facts["probe"]["lock"]["sha256"] = lock
    for key, value in changes.items():
        facts["probe"][key] = value
    windows = synthetic.windows(facts, seed, scale=scale)
    return VerifiedReceipt(derive(facts, windows) | {"evidence": {}}, windows)


def says(found, figure):
    return [change.says for change in found.changes if change.figure == figure]


def test_a_receipt_against_itself_is_the_same_everywhere():
    found = compare(side(), side())
    assert found.paired
    assert found.caveats == []
    assert {change.says for change in found.changes} == {SAME}
    assert {change.difference["estimate"] for change in found.changes} == {0.0}


def test_what_moved_is_named_with_its_direction_and_its_interval():
    one, other = side(), side(scale=3.0)
    found, back = compare(one, other), compare(other, one)
    assert set(says(found, "boundary_drift")) == {HIGHER}
    assert set(says(back, "boundary_drift")) == {LOWER}
    change = next(change for change in found.changes if change.figure == "boundary_drift")
    expected = change.second["estimate"] - change.first["estimate"]
    assert change.difference["estimate"] == pytest.approx(expected, rel=1e-12)
    assert change.difference["low"] > 0.0


def test_noise_is_called_a_move_no_more_often_than_stated():
    """Two one-sided bounds of 2.5 %, over all layers of a figure together: about one family in twenty."""
    families = flagged = 0
    for seed in range(24):
        found = compare(side(seed=2 * seed + 1), side(seed=2 * seed + 2))
        for figure in {change.figure for change in found.changes if change.where.startswith("layer")}:
            families += 1
            flagged += bool({HIGHER, LOWER} & set(says(found, figure)))
    assert families == 24 * 6
    assert flagged <= binom.ppf(0.999, families, 0.05)


def test_pairing_sees_what_disjoint_intervals_cannot():
    one, other = side(), side()
    for name in list(other.windows):
        if name.endswith("tuned.overlap"):
            noise = np.random.default_rng(0).normal(0.0, 1e-4, other.windows[name].shape)
            other.windows[name] = other.windows[name] + 0.004 + noise
    facts = dict(other.receipt)
    shifted = VerifiedReceipt(derive(facts, other.windows) | {"evidence": {}}, other.windows)
    assert set(says(compare(one, shifted), "overlap")) == {HIGHER}
    unpaired = VerifiedReceipt(
        shifted.receipt | {"probe": one.receipt["probe"] | {"lock": {"sha256": "cd" * 32}}}, shifted.windows
    )
    found = compare(one, unpaired)
    assert not found.paired
    assert set(says(found, "overlap")) == {UNCLEAR}
    assert found.changes[0].difference is None


def test_every_caveat_has_its_words():
    base = side()
    other = side("baseline")
    assert compare(base, other).caveats == ["of different kinds: audit and baseline"]
    moved = side(lock="cd" * 32, protected_layers=[2], evaluation={"experts": "all"})
    moved.receipt["checkpoints"]["base"]["digest"] = "ee" * 32
    caveats = " ".join(compare(base, moved).caveats)
    for words in (
        "different base checkpoints",
        "different registrations",
        "protected layers",
        "evaluation sets",
    ):
        assert words in caveats
    assert {change.where for change in compare(base, moved).changes if "layer" in change.where} == {"layer 2"}


def test_two_baselines_compare_health_and_loss_only():
    found = compare(side("baseline", seed=1), side("baseline", seed=1))
    assert {change.figure for change in found.changes} == {"overlap", "set_margin", "nll"}


def test_the_command_shows_both_and_refuses_what_does_not_verify(tmp_path, capsys):
    from tests.report import receipts

    one = receipts.on_disk(tmp_path, name="a.json")
    other = receipts.on_disk(tmp_path, scale=40.0, name="b.json")
    assert run(["diff", str(one), str(other)]) == 0
    out = capsys.readouterr().out
    assert out.index("A: PASS") < out.index("B: FAIL") < out.index("↑ higher")
    assert run(["diff", str(one), str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["paired"] is True
    other.write_text(other.read_text().replace("fail", "pass"))
    assert run(["diff", str(one), str(other)]) == 5
