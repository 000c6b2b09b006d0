"""What a report says first: likely cause, change of loss, reasons in a colleague's order, conditions."""

from __future__ import annotations

import io
import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from moe_atlas.api import AuditOptions, audit
from moe_atlas.report import terminal, words
from moe_atlas.report.formats import junit, markdown
from moe_atlas.report.head import because, conditions, head, losses, reasons
from moe_atlas.report.html import page
from moe_atlas.report.summary import summary
from moe_atlas.views.judged import EvidenceLine
from moe_atlas.views.receipt import ReceiptView
from scripts.oracle import tiny
from tests.checkpoint.test_quantised import fp8_model
from tests.report import receipts
from tests.support import pairs

PATH = Path("receipt.json")
NO_BUDGET = pairs.POLICY | {
    "rewrite": dict.fromkeys(("coordinate", "boundary", "transition", "content", "expert_content"))
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("head")


@pytest.fixture(scope="module")
def probes(root):
    return pairs.probe(root / "probe")


@pytest.fixture(scope="module")
def base(root):
    return tiny.save("qwen3_moe", root / "base", seed=3)


@pytest.fixture(scope="module")
def grouped(root):
    return tiny.save("deepseek_v3", root / "grouped", seed=3)


def judged(base: Path, tuned: Path, probes: Path) -> dict[str, Any]:
    options = AuditOptions(dtype="float32")
    return audit(base, tuned, probes, receipt=tuned.with_suffix(".json"), force=True, options=options).body


def configured(base: Path, folder: Path, **keys: Any) -> Path:
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))
    return folder


def forms(receipt: dict[str, Any]) -> dict[str, str]:
    """Every form of a report as plain text, its lines joined."""
    stream = io.StringIO()
    terminal.render(ReceiptView(receipt), Console(file=stream, width=2000, highlight=False, markup=False))
    rendered = {
        "terminal": stream.getvalue(),
        "markdown": markdown.render(ReceiptView(receipt), PATH),
        "html": page.audit_page(ReceiptView(receipt), PATH),
        "notebook": page.notebook(ReceiptView(receipt), PATH),
        "junit": junit.render(ReceiptView(receipt), PATH),
        "json": json.dumps(summary(ReceiptView(receipt), PATH), ensure_ascii=False),
    }
    return {name: unescape(text) for name, text in rendered.items()}


ROTATED = (
    "rotation base (rope_theta): base has 10000, tuned has 1000000, in layers 0–1; every position is rotated "
    "otherwise, so attention changes whatever was trained"
)
SETTINGS = [
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, ROTATED),
    (
        {"norm_topk_prob": False},
        "renormalisation of the chosen experts' weights (norm_topk_prob): base has yes, tuned has no, in layers 0–1; "
        "the routed output is scaled otherwise at every token",
    ),
    (
        {"use_sliding_window": True, "sliding_window": 5},
        "sliding window of the attention: base has none, tuned has 5, in layers 0–1; a token sees another stretch of "
        "the text",
    ),
]


@pytest.mark.parametrize(("keys", "sentence"), SETTINGS, ids=["theta", "renormalise", "window"])
def test_a_setting_that_differs_is_the_first_reason_that_every_form_gives(
    keys, sentence, base, root, probes, tmp_path
):
    receipt = judged(base, configured(base, tmp_path / "tuned", **keys), probes)
    assert receipt["verdict"] != "pass"
    assert [(said.title, said.text) for said in because(ReceiptView(receipt))] == [("likely cause", sentence)]
    assert head(ReceiptView(receipt))[3].line == f"likely cause: {sentence}"
    for name, text in forms(receipt).items():
        assert sentence in text, name
        assert name == "json" or text.index(sentence) < text.index("change of loss"), name
    outlined = forms(receipt)["terminal"].splitlines()
    assert outlined[4].strip() == f"likely cause: {sentence}"


def test_a_pass_says_what_differs_and_calls_it_no_cause():
    """An epsilon has several keys, and is one setting."""
    receipt = receipts.receipt()
    assert receipt["verdict"] == "pass"
    row = {"base": 1e-6, "tuned": 1e-5}
    receipt["method"]["differences"] = [
        {"key": "final_norm.eps", **row},
        {"key": "norm.eps", "layers": [0, 1], **row},
        {"key": "moe.norm_eps", "layers": [1], **row},
        {"key": "tied", "base": True, "tuned": False},
    ]
    (said,) = because(ReceiptView(receipt))
    assert said[:2] == (
        "differs beside the training",
        "epsilon of a norm: base has 1e-06, tuned has 1e-05, in layers 0–1; every normalised state changes a little",
    )
    assert all(said.text in text for text in forms(receipt).values())


def test_what_does_not_fit_the_head_is_counted():
    receipt = receipts.receipt(scale=40.0)
    keys = ("moe.router.groups", "moe.router.scale", "mixer.scale", "embed_scale", "mixer.chunk")
    receipt["method"]["differences"] = [{"key": key, "base": 1, "tuned": 2.5, "layers": [1]} for key in keys]
    said = [one.text for one in because(ReceiptView(receipt))]
    assert said == [
        "router setting groups: base has 1, tuned has 2.5, in layer 1; the router chooses experts by another rule",
        "factor on the routed output (routed_scaling_factor): base has 1, tuned has 2.5, in layer 1; the routed "
        "output is scaled otherwise at every token",
        "setting scale: base has 1, tuned has 2.5, in layer 1; every token is computed otherwise, whatever was trained",
        "2 more, in the receipt under method.differences",
    ]


def narrowed(*parts: str):
    def change(tensors):
        for name in tensors:
            if any(part in name for part in parts):
                tensors[name] = tensors[name].to(torch.bfloat16)

    return change


def test_a_router_in_a_narrower_format_is_named_and_so_is_its_bias(grouped, root, probes, tmp_path):
    chosen = narrowed("gate.weight", "e_score_correction_bias")
    receipt = judged(grouped, pairs.variant(grouped, tmp_path / "tuned", chosen), probes)
    why = "values that it cannot hold are rounded, and tokens near a boundary go to other experts"
    assert [said.text for said in because(ReceiptView(receipt))] == [
        f"format of the {name}: base has F32, tuned has BF16, in layers 1–2; {why}"
        for name in ("router", "selection bias")
    ]


def test_experts_in_another_format_are_named(root, probes, tmp_path):
    base = tiny.save("deepseek_v3", tmp_path / "bf16", dtype=torch.bfloat16)
    receipt = judged(base, fp8_model(tmp_path / "tuned"), probes)
    (said,) = because(ReceiptView(receipt))
    assert re.fullmatch(
        r"format of .*routed expert.*: base has BF16, tuned has fp8, scales of 16×16, in layers 0–2; values that .*",
        said.text,
    )
    assert "two-formats" in {warning["code"] for warning in receipt["warnings"]}


def test_a_format_that_holds_every_value_is_neither_a_cause_nor_a_warning(root, probes, tmp_path):
    """float32 that holds bfloat16 values, tuned in bfloat16: the noise of the format is exactly 0."""
    plain = tiny.save("deepseek_v3", tmp_path / "bf16", dtype=torch.bfloat16)
    widened = lambda tensors: {name: tensor.float() for name, tensor in tensors.items()}  # noqa: E731
    base = pairs.variant(plain, tmp_path / "base", widened)
    tuned = pairs.variant(plain, tmp_path / "tuned", pairs.jitter(0.3, lambda name: ".experts." in name))
    receipt = judged(base, tuned, probes)
    costs = [layer["pair"]["content_quantisation"]["estimate"] for layer in receipt["layers"]]
    assert costs == [0.0, 0.0]
    assert any(row["key"] == "stored.routed_expert" for row in receipt["method"]["differences"])
    assert list(because(ReceiptView(receipt))) == []
    assert "two-formats" not in {warning["code"] for warning in receipt["warnings"]}
    assert receipt["predicates"]["protected_atlas_rewrite"]["outcome"] == "rewritten"


def test_a_wider_format_is_no_difference(grouped, probes, tmp_path):
    plain = pairs.variant(grouped, tmp_path / "bf16", narrowed(""))
    tuned = pairs.variant(grouped, tmp_path / "tuned", pairs.jitter(0.1, lambda name: ".experts." in name))
    assert judged(plain, tuned, probes)["method"]["differences"] == []


def test_channels_without_a_budget_are_said_to_be_not_judged(base, root, tmp_path):
    moved = pairs.variant(base, tmp_path / "tuned", pairs.jitter(2.0, lambda name: ".experts." in name))
    receipt = judged(base, moved, pairs.probe(tmp_path / "open", policy=NO_BUDGET))
    found = receipt["predicates"]["protected_atlas_rewrite"]
    assert (found["outcome"], found["passed"]) == ("undetermined", None)
    assert found["reason"].endswith("nothing was judged")
    worst = max(receipt["layers"], key=lambda layer: layer["pair"]["content_drift"]["estimate"])
    drift = worst["pair"]["content_drift"]["estimate"]
    assert drift > 0.5
    (said,) = [one for one in conditions(ReceiptView(receipt)) if one.title == "not judged"]
    assert f"content drift {drift:.3g} (layer {worst['layer']})" in said.text
    assert said.text.startswith("no budget registered; measured: ")
    for name, text in forms(receipt).items():
        assert said.text in text or name == "notebook", name
        assert found["reason"] in text or name == "notebook", name
    table = forms(receipt)["terminal"]
    assert "non-finite weights" not in table
    assert "expert identity" not in table


def test_the_loss_comes_before_the_drift_and_its_interval_stands_there():
    receipt = receipts.receipt(scale=40.0)
    found = {row["name"]: row["nll_increase"] for row in receipt["domains"]}
    (said,) = losses(ReceiptView(receipt))
    code, task = found["code"], found["sft"]
    assert said.text.startswith(
        f"base code +{code['estimate']:.3g} [{code['low']:.3g}, {code['high']:.3g}], prose +"
    )
    assert (
        f"; task sft {task['estimate']:.3g} [{task['low']:.3g}, {task['high']:.3g}] (nats a byte" in said.text
    )
    order = [group.gate for group in words.deciding(ReceiptView(receipt))]
    assert order[:2] == ["nll_increase", "canary"]
    assert set(order[2:]) == {"coordinate", "transition", "boundary", "content"}
    text = forms(receipt)
    for name in ("terminal", "markdown", "html", "notebook"):
        places = [
            text[name].index(part) for part in ("change of loss", "code NLL increase", "coordinate drift")
        ]
        assert places == sorted(places), name
    failed = [line["gate"] for line in json.loads(text["json"])["failed"] if line["result"] == "fail"]
    assert failed[:2] == ["nll_increase", "canary"]


def test_a_number_that_is_no_budget_is_not_called_one():
    for scale in (1.0, 4.8, 40.0):
        for name, text in forms(receipts.receipt(scale=scale)).items():
            for gate in ("NLL increase", "worst window", "share of damaged documents", "task success"):
                assert not re.search(rf"{gate} [^;|<\n\"]*\bbudget\b", text), (name, gate)
    line = {"domain": "x", "gate": "task_success", "estimate": 1.0, "low": 0.9, "high": 1.1, "budget": 2.0}
    assert words.gate_sentence(EvidenceLine(line)).endswith(", target 2")
    assert words.gate_sentence(EvidenceLine(line | {"gate": "nll_increase"})).endswith(", 0.5 × margin 2")
    assert words.gate_sentence(EvidenceLine(line | {"gate": "content"})).endswith(", 0.5 × budget 2")


def breach(layer: int | None, number: int) -> dict[str, Any]:
    line = {"gate": "identity", "layer": layer, "estimate": None, "budget": None, "result": "fail"}
    return line | {"reason": f"clones: expert {number}"}


@pytest.mark.parametrize(
    ("layers", "tail"),
    [
        ([0], ""),
        ([0, 1], "; and 1 more layer"),
        ([0, 1, 2, 3], "; and 3 more layers"),
        ([n % 4 for n in range(21)], "; and 20 more findings, in 3 more layers"),
        ([0, 0], "; and 1 more finding"),
        ([None, None, None], "; and 2 more findings"),
    ],
)
def test_layers_are_counted_and_not_lines(layers, tail):
    (group,) = words.grouped([EvidenceLine(breach(layer, number)) for number, layer in enumerate(layers)])
    assert group.sentence.partition(";")[2] == tail.removeprefix(";")


def test_what_the_policy_allows_and_what_no_token_passes_stands_in_every_form():
    receipt = receipts.receipt()
    receipt["probe"]["policy"]["allow"] = ["mtp"]
    skipped = [
        {"tensor": f"model.layers.4.{n}", "reason": "prediction layer", "part": "mtp"} for n in range(3)
    ]
    receipt["checkpoints"]["base"]["skipped"] = skipped
    receipt["checkpoints"]["tuned"]["skipped"] = [*skipped[:1], skipped[0] | {"part": "derived"}]
    lines = {said.title: said.text for said in conditions(ReceiptView(receipt))}
    assert lines["allowed by the policy"].startswith("mtp (multi-token-prediction tensors may be missing")
    assert lines["not replayed"].startswith("3 tensors (multi-token prediction): compared value by value")
    for name, text in forms(receipt).items():
        assert all(line in text for line in lines.values()), name


def test_the_conditions_of_a_pass_stand_on_the_screen():
    """A policy that cannot fail, an accepted key and weights that nothing read are warnings, each shown whole."""
    made = receipts.facts()
    made["probe"]["policy"]["rewrite"]["content"] = 0.9
    tuned = made["checkpoints"]["tuned"]
    tuned["accepted_config_keys"] = [{"key": "odd_switch", "value": "true"}]
    tuned["files"]["listed"] = [
        {
            "file": "extra.bin",
            "bytes": 1,
            "sha256": None,
            "content": None,
            "unread": "pickle",
            "kind": "weights",
        }
    ]
    from moe_atlas.derivation.derive import derive
    from tests.receipt import synthetic

    receipt = derive(made, synthetic.windows(made, seed=3)) | {"evidence": receipts.receipt()["evidence"]}
    assert receipt["verdict"] == "pass"
    text = forms(receipt)
    for name in ("terminal", "html", "junit", "json"):
        for part in ("could not have failed", "odd_switch = true", "extra.bin"):
            assert part in text[name], (name, part)


def test_a_baseline_has_no_reasons():
    receipt = receipts.receipt("baseline")
    assert [
        *because(ReceiptView(receipt)),
        *losses(ReceiptView(receipt)),
        *reasons(ReceiptView(receipt)),
    ] == []


def test_a_grown_vocabulary_is_not_said_to_change_every_token():
    receipt = receipts.receipt()
    receipt["method"]["differences"] = [{"key": "vocab", "base": 400, "tuned": 403}]
    (said,) = because(ReceiptView(receipt))
    assert said.text == (
        "number of token ids: base has 400, tuned has 403; the rows that one checkpoint alone has take probability in "
        "its softmax"
    )
