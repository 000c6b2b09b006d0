"""A mean of losses can be paid for: predictions that became sharper elsewhere hide damage, their divergence does not.

The documents are drawn from the model itself, so that its own head, neither flatter nor sharper, predicts them best.
"""

from __future__ import annotations

import json

import pytest
import torch

from moe_atlas.api import AuditOptions, audit
from moe_atlas.probes.registration import register
from scripts.oracle import tiny
from tests.support import pairs

LENGTH, DOCUMENTS, DOMAINS = 16, 60, ("prose", "code")
HEAD = "lm_head.weight"
MARGIN = 0.1


def scaled(factor):
    def change(tensors):
        tensors[HEAD] = factor * tensors[HEAD]

    return change


def noisy(size):
    return pairs.jitter(size, lambda name: name == HEAD)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sharpening")


@pytest.fixture(scope="module")
def proper(root):
    source = tiny.save("qwen3_moe", root / "source", seed=3)
    return pairs.variant(source, root / "proper", scaled(2.0))


@pytest.fixture(scope="module")
def documents(proper):
    model, generator = tiny.load_reference(proper), torch.Generator().manual_seed(0)
    tokens_NS = torch.randint(0, 48, (DOCUMENTS * len(DOMAINS), 1), generator=generator)
    with torch.no_grad():
        for _ in range(LENGTH - 1):
            probs_NV = model(tokens_NS).logits[:, -1].softmax(-1)
            tokens_NS = torch.cat([tokens_NS, torch.multinomial(probs_NV, 1, generator=generator)], dim=1)
    return tokens_NS.tolist()


@pytest.fixture(scope="module")
def judge(root, documents):
    def call(base, tuned, **limits):
        folder = root / f"probe-{'-'.join(map(str, limits.values())) or 'absent'}"
        damage = {"nll": MARGIN, "document_nll": 0.9, "document_share": 0.12} | limits
        base_domains = [
            {"name": name, "role": "base", "source": f"{name}.jsonl", "documents": DOCUMENTS}
            for name in DOMAINS
        ]
        path = pairs.probe(
            folder, domains=base_domains, documents=DOCUMENTS, policy=pairs.POLICY | {"damage": damage}
        )
        for number, name in enumerate(DOMAINS):
            own = documents[number * DOCUMENTS : (number + 1) * DOCUMENTS]
            lines = [json.dumps({"id": f"{name}-{n}", "tokens": tokens}) for n, tokens in enumerate(own)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        register(path, force=True)
        options = AuditOptions(dtype="float32")
        return audit(base, tuned, path, receipt=root / "receipt.json", force=True, options=options).body

    return call


def increases(receipt):
    return [row["nll_increase"]["estimate"] for row in receipt["domains"]]


def outcome(receipt):
    return receipt["predicates"]["base_domain_damage"]["outcome"]


def gates(receipt, name):
    return [gate for gate in receipt["predicates"]["base_domain_damage"]["evidence"] if gate["gate"] == name]


@pytest.fixture(scope="module")
def flat(proper, root):
    return pairs.variant(proper, root / "flat", scaled(0.5))


@pytest.fixture(scope="module")
def damaged(proper, root):
    return pairs.variant(proper, root / "damaged", noisy(0.35))


def test_the_damage_is_damage_and_a_flattened_base_hides_it(proper, flat, damaged, judge):
    seen = judge(proper, damaged, kl=None)
    assert max(increases(seen)) > 2 * MARGIN
    assert seen["verdict"] == "fail"
    hidden = judge(flat, damaged, kl=None)
    assert max(increases(hidden)) < 0
    assert outcome(hidden) == "undamaged"  # what a null leaves open, and says so:
    assert [warning["code"] for warning in hidden["warnings"]].count("kl-not-gated") == 1


@pytest.mark.parametrize(("limits", "found"), [({}, "undetermined"), ({"kl": 0.2}, "damaged")])
def test_hidden_damage_never_passes(flat, damaged, judge, limits, found):
    receipt = judge(flat, damaged, **limits)
    assert outcome(receipt) == found
    assert receipt["verdict"] != "pass"
    assert {gate["result"] for gate in gates(receipt, "nll_increase")} == {"pass"}
    assert len(gates(receipt, "kl")) == len(DOMAINS)
    for gate in gates(receipt, "kl"):
        assert gate["result"] == {"damaged": "fail", "undetermined": "undetermined"}[found]
        assert gate["estimate"] > 0.2
        assert found == "damaged" or "register damage.kl" in gate["reason"]
    steps = {step["pattern"] for step in receipt["next_steps"]}
    assert steps & {"a base domain is predicted differently", "predictions moved further than the loss says"}


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_another_temperature_alone_never_passes(proper, judge, root, factor):
    other = pairs.variant(proper, root / f"scaled-{factor}", scaled(factor))
    assert judge(proper, other)["verdict"] != "pass"
    assert judge(other, proper)["verdict"] != "pass"


@pytest.mark.parametrize(
    ("limits", "result"), [({}, "not-gated"), ({"kl": 0.2}, "pass"), ({"kl": None}, "not-gated")]
)
def test_a_healthy_tune_passes(proper, judge, root, limits, result):
    tune = pairs.variant(proper, root / "healthy", noisy(0.02))
    receipt = judge(proper, tune, **limits)
    assert receipt["verdict"] == "pass"
    assert {gate["result"] for gate in gates(receipt, "kl")} == {result}
    warned = "kl-not-gated" in [warning["code"] for warning in receipt["warnings"]]
    assert warned is ("kl" in limits and limits["kl"] is None)
