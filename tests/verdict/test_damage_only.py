"""Stage damage-only: damage, identity, weights and non-finite values decide; no channel of the atlas does."""

from __future__ import annotations

from typing import Any

import pytest

from moe_atlas.verdict.predicates import derive_predicates
from moe_atlas.views.receipt import ReceiptView
from tests.verdict.receipts import interval, receipt, rewritten, set_path

ATLAS, DAMAGE, TASK = "protected_atlas_rewrite", "base_domain_damage", "knowledge_expansive"


def unjudged() -> dict[str, Any]:
    made = receipt("damage-only")
    made["probe"]["policy"]["rewrite"] = dict.fromkeys(made["probe"]["policy"]["rewrite"])
    return made


def judged(made: dict[str, Any]) -> tuple[str, str, str]:
    found = derive_predicates(ReceiptView(made))
    return found["verdict"], found["predicates"][ATLAS]["outcome"], found["predicates"][TASK]["outcome"]


def test_a_pass_judges_no_atlas() -> None:
    assert judged(unjudged()) == ("pass", "not-judged", "task-reached")


def test_any_drift_passes() -> None:
    assert judged(rewritten(unjudged())) == ("pass", "not-judged", "task-reached")


def test_without_a_task_it_passes_on_damage_alone() -> None:
    made = unjudged()
    made["domains"] = [row for row in made["domains"] if row["role"] != "task"]
    assert judged(made | {})[0] == "inconclusive"
    made["probe"]["policy"]["task"] = "none"
    assert judged(made) == ("pass", "not-judged", "not-applicable")


BREACHES = [
    ("domains.0.nll_increase", interval(0.3, 0.4), "fail"),
    ("domains.0.nll_increase", interval(0.0, 0.4), "inconclusive"),
    ("domains.0.non_finite_windows", 1, "fail"),
    ("domains.2.worst_window.over", 1, "fail"),
    ("domains.3.success.value", interval(2.4, 2.5), "fail"),
    ("weights.classes.router.nonfinite", {"base": 0, "tuned": 3}, "fail"),
    ("identity.breaches", [{"layer": 1, "kind": "cloned", "detail": "x"}], "fail"),
    ("identity", None, "inconclusive"),
    ("weights.unreplayed", None, "inconclusive"),
    ("vocabulary.embedding", None, "inconclusive"),
    ("layers.1.changes", None, "inconclusive"),
    ("probe.policy.damage", {"nll": None, "document_nll": None, "document_share": None}, "inconclusive"),
    ("probe.protected_layers", [], "inconclusive"),
]


@pytest.mark.parametrize(("path", "value", "verdict"), BREACHES)
def test_everything_else_still_decides(path: str, value: Any, verdict: str) -> None:
    assert judged(set_path(unjudged(), path, value))[0] == verdict


def test_a_weight_rule_still_fails() -> None:
    made = unjudged()
    made["probe"]["policy"]["weights"] = {"must_change": [], "must_not_change": ["router"]}
    row = {
        "name": "gate",
        "class": "router",
        "layer": 1,
        "expert": None,
        "identical": False,
        "rounded": False,
    }
    made["weights"]["tensors"] = [row]
    assert judged(made)[:2] == ("fail", "rewritten")


def test_nothing_tuned_is_inconclusive_unless_it_is_allowed() -> None:
    made = unjudged()
    made["identity"]["identical_checkpoints"] = True
    assert judged(made) == ("inconclusive", "not-judged", "nothing-tuned")
    made["probe"]["policy"]["allow"] = ["identical"]
    assert judged(made)[0] == "pass"


def test_a_budget_in_an_edited_receipt_still_fails() -> None:
    """A probe file under this stage holds no budget; a receipt that holds one all the same gets nothing out of it."""
    assert judged(receipt("damage-only"))[1] == "not-judged"
    assert judged(rewritten(receipt("damage-only")))[:2] == ("fail", "rewritten")
