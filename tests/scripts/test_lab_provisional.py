"""The lab's section on provisional budgets judges as the gate does, and counts what it judged."""

from __future__ import annotations

from typing import Any

import pytest

from moe_atlas.derivation.derive import derive
from scripts.lab.pairs import Pair
from scripts.lab.provisional import Judged, counts, judged_again, pairs_table
from tests.receipt import synthetic


def facts(**rewrite: Any) -> dict[str, Any]:
    made = synthetic.facts()
    policy = made["probe"]["policy"]
    policy["resamples"] = 120
    policy["rewrite"] |= {"refinement": None} | rewrite
    return made


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("content", [1e-6, 0.2, 0.49])
def test_judging_again_is_deriving_again(scale: float, content: float) -> None:
    windows = synthetic.windows(facts(), seed=3, scale=scale)
    other = facts(content=content, coordinate=None)
    other["probe"]["policy"]["damage"] |= {"nll": 0.5, "document_nll": 0.01}
    again = judged_again(derive(facts(), windows), windows, other["probe"]["policy"])
    wanted = derive(other, windows)
    for key in ("verdict", "predicates", "domains", "qualified"):
        assert again[key] == wanted[key], key


def judged(name: str, expect: str, provisional: str, calibrated: str) -> Judged:
    domain = {"role": "base", "nll_increase": {"estimate": 0.03}}
    line = {"gate": "boundary", "result": "fail" if provisional == "fail" else "pass"}
    return Judged(
        "qwen3_moe",
        Pair(name, "", expect, "", lambda _, base: base),
        {},
        {"verdict": calibrated, "domains": [domain]},
        {"verdict": provisional, "predicates": {"atlas": {"evidence": [line]}}},
    )


def test_the_section_counts_broken_and_sound_pairs_apart() -> None:
    found = [
        judged("gains-lost", "fail", "pass", "fail"),
        judged("clone", "fail", "fail", "fail"),
        judged("int4-groups", "open", "pass", "pass"),
        judged("replay-sft-1", "pass", "inconclusive", "pass"),
    ]
    assert counts([(one, str(one.provisional["verdict"])) for one in found]) == "1 / 0 / 1 | 0 / 1 / 0"
    lines = pairs_table(found).splitlines()
    assert lines[2] == "| qwen3_moe | gains-lost | fail | PASS | FAIL | +0.030 | – |"
    assert lines[3].endswith("| boundary |")
