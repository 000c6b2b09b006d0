"""A look on a screen: the plain sentence first, the object by name, no word that reads as a verdict."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from moe_atlas.channels import DISTANCES
from moe_atlas.derivation.derive import derive
from moe_atlas.receipt.schema import schema_problems
from moe_atlas.report.look import sentences
from moe_atlas.report.look.screen import render
from moe_atlas.report.yardstick import with_multiples
from moe_atlas.views.receipt import ReceiptView
from tests.receipt import synthetic
from tests.report import receipts
from tests.support import golden


def look(**changes: Any) -> dict[str, Any]:
    """A derived look at synthetic evidence; `changes` replace top-level facts."""
    facts = receipts.facts()
    windows = synthetic.windows(facts)
    names = [f"json/decoder.py:part_{n}" for n in range(len(windows["windows.domain"]))]
    facts |= {
        "kind": "look",
        "look": {"source": "a library", "how": "by kind", "margin": 0.05, "documents": names},
    }
    facts["probe"]["policy"] |= {"stage": "look"}
    facts["probe"]["tokenizer"] = {"kind": "file", "sha256": "ab" * 32}
    facts["probe"]["lock"]["content_sha256"] = "ab" * 32
    facts["identity"]["breaches"] = []
    return derive(facts | changes, windows)


@pytest.fixture(scope="module")
def receipt():
    return look()


def shown(receipt: dict[str, Any]) -> str:
    stream = io.StringIO()
    receipt = receipt | {"evidence": {"windows": "w", "sha256": "0" * 64, "receipt_sha256": "0" * 64}}
    render(ReceiptView(receipt), Console(file=stream, width=140, highlight=False, markup=False))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def copy_of(estimate: float) -> dict[str, float]:
    return {"estimate": estimate, "low": 0.9 * estimate, "high": 1.1 * estimate}


def with_yardstick(receipt: dict[str, Any], times: float) -> dict[str, Any]:
    """The same with a yardstick of which every drift is a multiple."""
    made = copy.deepcopy(receipt)
    layers = [
        {"layer": layer["layer"]}
        | {one.key: copy_of(layer["pair"][one.key]["estimate"] / times) for one in DISTANCES}
        for layer in made["layers"]
    ]
    domains = [
        {
            "name": row["name"],
            "role": row["role"],
            "nll_increase": copy_of(0.02),
            "kl": copy_of(0.02),
        }
        for row in made["domains"]
    ]
    return with_multiples(made | {"yardstick": {"layers": layers, "domains": domains}})


def test_the_screen_of_a_look(receipt):
    golden.check("look.txt", shown(with_yardstick(receipt, 2.5)))


def test_no_word_on_it_is_a_verdict(receipt):
    text = shown(receipt)
    assert text.startswith(" A LOOK, NOT A VERDICT ")
    assert not {"PASS", "FAIL", "INCONCLUSIVE", "pass", "fail"} & set(text.replace(",", " ").split())


def test_the_schema_knows_a_look_and_lets_it_have_one_verdict(receipt):
    whole = receipt | {"evidence": {"windows": "w", "sha256": "0" * 64, "receipt_sha256": "0" * 64}}
    known = {path for path, _ in schema_problems(whole)}
    assert not {path for path in known if path.startswith(("look", "kind", "verdict", "probe.policy.stage"))}
    for verdict in ("pass", "fail", None):
        assert "verdict" in {path for path, _ in schema_problems(whole | {"verdict": verdict})}
    assert "look" in {path for path, _ in schema_problems({k: v for k, v in whole.items() if k != "look"})}


def with_losses(receipt: dict[str, Any], *losses: tuple[float, float, float]) -> dict[str, Any]:
    made = copy.deepcopy(receipt)
    bounds = ("estimate", "low", "high")
    made["domains"] = [
        {"name": name, "documents": 60, "nll_increase": dict(zip(bounds, loss, strict=True))}
        for name, loss in zip(("prose", "code", "notes"), losses, strict=False)
    ]
    return made


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (
            [(0.1, 0.05, 0.15), (0.8, 0.7, 0.9)],
            "Code got 0.8 nats a token worse (0.7 to 0.9), prose 0.1 (0.05 to 0.15).",
        ),
        ([(-0.3, -0.4, -0.2)], "Prose got 0.3 nats a token better (0.2 to 0.4)."),
        (
            [(0.001, -0.01, 0.012), (0.0, 0.0, 0.0)],
            "No domain got certainly worse or better: prose +0.001 (-0.01 to +0.012), code +0 (+0 to +0) nats a token.",
        ),
        (
            [(0.2, 0.1, 0.3), (0.1, -0.1, 0.3), (-0.2, -0.3, -0.1)],
            "Prose got 0.2 nats a token worse (0.1 to 0.3). Notes got 0.2 nats a token better (0.1 to 0.3). "
            "No certain change: code +0.1 (-0.1 to +0.3).",
        ),
    ],
)
def test_the_sentence_on_the_loss(receipt, losses, said):
    assert sentences.loss(ReceiptView(with_losses(receipt, *losses))) == said


def test_few_documents_make_nothing_certain(receipt):
    made = with_losses(receipt, (0.8, 0.7, 0.9))
    made["domains"][0]["documents"] = 12
    assert sentences.loss(ReceiptView(made)) == (
        "No domain got certainly worse or better: prose +0.8 (12 documents, fewer than 30) nats a token."
    )


def test_bytes_are_called_bytes(receipt):
    made = with_losses(receipt, (0.8, 0.7, 0.9))
    made["probe"]["tokenizer"]["kind"] = "bytes"
    assert "0.8 nats a byte worse" in sentences.loss(ReceiptView(made))


def identity(receipt, *layers, breaches=()):
    made = copy.deepcopy(receipt)
    rows = [{"layer": n, "clones": {"base": base, "tuned": tuned}} for n, base, tuned in layers]
    made["identity"] |= {"layers": rows, "breaches": list(breaches)}
    made["look"]["findings"] = []
    return made


def test_copies_are_named_once_for_the_layers_that_share_them(receipt):
    lost = [{"layer": n, "kind": "expert-identity-lost", "detail": "base expert → 4→3"} for n in (1, 2, 5)]
    pairs = [[0, 4], [1, 5]]
    made = identity(
        receipt, (1, [], pairs), (2, [], pairs), (3, [[2, 3]], [[2, 3]]), (5, [], []), breaches=lost
    )
    assert list(sentences.broken(ReceiptView(made))) == [
        "Experts are copies of other experts in layers 1–2: 4 of 0, 5 of 1.",
        "Lost experts in layer 5: base expert → 4→3.",
    ]


def test_what_is_broken_comes_first_unless_the_loss_rose(receipt):
    made = identity(with_losses(receipt, (-0.1, -0.2, -0.05)), (1, [], [[0, 4]]))
    assert [said.split()[0] for said in sentences.opening(ReceiptView(made))] == ["Experts", "Prose"]
    made["look"]["findings"] = [{"gate": "nll_increase"}]
    assert [said.split()[0] for said in sentences.opening(ReceiptView(made))] == ["Prose", "Experts"]


def test_the_drift_that_is_furthest_from_the_yardstick_is_named(receipt):
    (said,) = sentences.drift(ReceiptView(with_yardstick(receipt, 2.5)))
    assert said.startswith("Largest drift against that of a 4-bit copy of the base: ")
    assert said.endswith("2.5 × the copy's.")
    (said,) = sentences.drift(ReceiptView(with_yardstick(receipt, 0.5)))
    assert said.startswith("Every drift is within that of a 4-bit copy of the base")
    assert list(sentences.drift(ReceiptView(receipt))) == []
